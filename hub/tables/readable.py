"""Reading versions each for itself, so that a damaged row stops nothing that the others are asked for."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lorary.hub.errors import RegistryError
from lorary.hub.tables.catalogue import damaged, select
from lorary.hub.values import Unreadable, Version

if TYPE_CHECKING:
    from sqlite_utils import Database


def as_bytes(column: str) -> str:
    """A text in a query such that :func:`texts` can leave it out: read as text, one that isn't UTF-8 stops them all."""
    return f"CASE WHEN typeof({column}) = 'text' THEN CAST({column} AS BLOB) END"


def texts(found: Iterable[Sequence[Any]]) -> Iterator[tuple[Any, ...]]:
    """Rows with values that were asked for by :func:`as_bytes` as texts, without those in which one is none."""
    for row in found:
        with suppress(UnicodeDecodeError):
            if None not in row:
                yield tuple(value.decode() if isinstance(value, bytes) else value for value in row)


def select_each(db: Database, ids: Sequence[int]) -> Iterator[Version | Unreadable]:
    """The versions of these row ids in that order, without those that aren't there any more."""
    if not ids:
        return
    try:
        found = select(db, f"v.id IN ({', '.join(map(str, ids))})")
    except (RegistryError, sqlite3.DatabaseError) as error:
        if len(ids) > 1:
            for half in (ids[: len(ids) // 2], ids[len(ids) // 2 :]):
                yield from select_each(db, half)
        elif reference := _reference(db, ids[0]):
            read = isinstance(error, RegistryError)
            yield Unreadable(reference, str(error).partition(": ")[2] if read else damaged(error))
        return
    yield from (found[row_id] for row_id in ids if row_id in found)


def demand_readable(found: Version | Unreadable) -> Version:
    """The version itself.

    Raises:
        RegistryError: its row is damaged.
    """
    if isinstance(found, Unreadable):
        raise RegistryError(str(found))
    return found


def _reference(db: Database, row_id: int) -> str | None:
    query = "SELECT a.name, v.number FROM versions v JOIN adapters a ON a.id = v.adapter_id WHERE v.id = ?"
    try:
        row = db.execute(query, [row_id]).fetchone()
    except sqlite3.DatabaseError:
        return f"version {row_id}"  # its name is what is damaged
    return f"{row[0]}@{row[1]}" if row else None
