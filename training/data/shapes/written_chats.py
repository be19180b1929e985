"""Prompts and replies that are chats as text, which files without lists (CSV) have them as.

Whether a column holds them is told by all of its texts: a reply may well begin with a bracket, or be JSON.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from lorary.training.data.examples import Note
from lorary.training.data.files.source import Row, Source, bad_rows
from lorary.training.data.shapes.messages import as_written_chat
from lorary.training.recipe.raw import shown

_REPLIES = ("chosen", "rejected", "completion")


@dataclass(frozen=True)
class _Column:
    """A column's texts by the place of their row, and the messages of those that are chats."""

    name: str
    rows: Sequence[Row]

    @cached_property
    def texts(self) -> Mapping[int, str]:
        found = ((place, row.values.get(self.name)) for place, row in enumerate(self.rows))
        return {place: text for place, text in found if isinstance(text, str) and text.strip()}

    @cached_property
    def chats(self) -> Mapping[int, Any]:
        return {place: chat for place, text in self.texts.items() if (chat := as_written_chat(text)) is not None}

    @property
    def holds_chats(self) -> bool:
        """Are most of its values messages, or chats as text?"""
        lists = sum(isinstance(row.values.get(self.name), list) for row in self.rows)
        return 2 * (len(self.chats) + lists) > len(self.texts) + lists

    def problems(self) -> list[str]:
        """Texts that begin like the chats of the other rows, and are none."""
        return [
            f"{self.rows[place].place}, {self.name}: expected messages as in other rows, found {shown(text)}"
            for place, text in self.texts.items()
            if place not in self.chats and text.lstrip()[0] in "[{"
        ]


def with_written_chats(source: Source, columns: Mapping[str, str], note: Note) -> Source:
    """A source with the messages of prompts and replies in place of texts, in columns where most texts are chats.

    Of a prompt and its completion both have to be, since a chat may be what a text is asked about.

    Raises:
        DataError: by its row, a text in such a column that begins like a chat and is none.
    """
    found = {role: _Column(columns[role], source.rows) for role in ("prompt", *_REPLIES) if role in columns}
    reply = next((found[role] for role in _REPLIES if role in found), None)
    if reply is None:
        return source
    read, problems = [], list[str]()
    for role, column in found.items():
        if not column.chats:
            continue
        beside = {"prompt": reply, "completion": found.get("prompt")}.get(role)
        counted = f"{len(column.chats)} of {len(column.texts)} texts in {column.name!r}"
        if column.holds_chats and (beside is None or beside.holds_chats):
            note(f"{counted} are chats: read as their messages")
            problems += column.problems()
            read.append(column)
        else:
            others = "the others" if not column.holds_chats or beside is None else f"those in {beside.name!r}"
            first = source.rows[min(column.chats)].place
            note(f"{counted} look like chats (first: {first}), and are read as texts like {others}")
    if problems:
        raise bad_rows(source, problems)
    if not read:
        return source
    return replace(source, rows=tuple(_with_chats(row, place, read) for place, row in enumerate(source.rows)))


def _with_chats(row: Row, place: int, columns: Sequence[_Column]) -> Row:
    chats = {column.name: column.chats[place] for column in columns if place in column.chats}
    return replace(row, values={**row.values, **chats}) if chats else row
