"""Rows in which something is missing: left out and counted where the recipe says so, else an error."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.data.examples import Note
from lorary.training.data.files.source import Row, Source
from lorary.training.data.roles import CHECKS, OPTIONAL_ROLES
from lorary.training.data.shapes.answers import misplaced
from lorary.training.data.shapes.messages import as_messages
from lorary.training.recipe.sections import Data

_MAY_BE_EMPTY = OPTIONAL_ROLES | {"answers", "answer", "answer_start"}
"""Roles whose empty values say something: there is no input, or no answer."""

HINT = "data.incomplete: drop leaves out the rows in which a value is missing or empty, or an answer isn't in its place"


def without_incomplete(source: Source, data: Data, note: Note) -> Source:
    """A source without the rows that have a label of ``data.unlabelled`` or, if asked for, lack a value.

    Raises:
        DataError: no row is left.
    """
    columns = data.columns.named()
    labels = data.label_columns or ([columns["label"]] if "label" in columns else [])
    none = {str(label).strip() for label in data.unlabelled or ()}
    unlabelled = {row.place for row in source.rows if any(_written(row.values.get(name)) in none for name in labels)}
    lacking = {
        row.place
        for row in source.rows
        if data.incomplete == "drop"
        and row.place not in unlabelled
        and (lacks_value(row, columns) or any(is_missing(row.values.get(name)) for name in data.label_columns or ()))
    }
    for places, why in (
        (unlabelled, "have a label that says there is none (data.unlabelled)"),
        (lacking, "lack a value (data.incomplete)"),
    ):
        if places:
            first = next(row.place for row in source.rows if row.place in places)
            note(f"{len(places)} of {len(source.rows)} rows are left out, since they {why}; first: {first}")
    kept = tuple(row for row in source.rows if row.place not in unlabelled | lacking)
    if not kept and source.rows:
        raise DataError(source.shown, ["no row is left: all lack a label or a value; name rows that have both"])
    return replace(source, rows=kept, left_out=len(source.rows) - len(kept))


def lacks_value(row: Row, columns: Mapping[str, str]) -> bool:
    """Is a value missing that the row has to have in one of these columns, by role, or an answer from its context?"""
    found = {role: row.values.get(column) for role, column in columns.items()}
    needed = {role: value for role, value in found.items() if role not in _MAY_BE_EMPTY}
    if any(is_missing(value, may_be_no_list=role != "label") for role, value in needed.items()):
        return True
    whole = "context" in found and all(CHECKS[role](value) is None for role, value in found.items())
    return whole and misplaced(found) is not None


def is_missing(value: Any, *, may_be_no_list: bool = True) -> bool:
    """Is a value nothing, not a number, blank, a list that is empty or lacks a word, or a chat in which the assistant
    says nothing?"""
    if isinstance(value, str):
        return not value.strip()
    if isinstance(value, list) and may_be_no_list:
        lacking = any(is_missing(word) for word in value if not isinstance(word, list))
        return not value or lacking or _is_silent(as_messages(value))
    return value is None or (isinstance(value, float) and value != value)


def _is_silent(messages: Iterable[Any]) -> bool:
    """Is one of the assistant's turns in a chat empty?"""
    return any(
        isinstance(message, Mapping)
        and message.get("role") == "assistant"
        and not message.get("tool_calls")
        and is_missing(message.get("content"))
        for message in messages
    )


def _written(label: Any) -> str | None:
    """A label as text, the way it is written where it is one: -1 for -1.0."""
    if isinstance(label, float) and label.is_integer():
        label = int(label)
    return str(label).strip() if isinstance(label, (str, int)) else None
