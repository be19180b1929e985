"""From a reference to the version it names, or to an error that says what there is."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import InvalidReferenceError, UnknownReferenceError
from lorary.hub.reference import FolderReference, RegistryReference, parse_reference
from lorary.hub.registry_path import suggested
from lorary.hub.tables.readable import as_bytes, demand_readable, select_each, texts
from lorary.hub.values import Version

if TYPE_CHECKING:
    from sqlite_utils import Database

WHOLE = "typeof(v.number) = 'integer'"
"""Is a version's number one, which another program may have written?"""

_SHOWN = 8  # numbers listed one by one before only their range is told
_COMPARED = 10_000  # names at most that a mistyped one is compared with


def registry_reference(text: str) -> RegistryReference:
    """Read a reference that can only mean the registry.

    Raises:
        InvalidReferenceError: it isn't one, or it means a folder or the Hub.
    """
    reference = parse_reference(text)
    if not isinstance(reference, RegistryReference):
        kind = "a folder" if isinstance(reference, FolderReference) else "a repository on the Hub"
        raise InvalidReferenceError(
            f"{text!r} means {kind}; expected a name in the registry: name, name@3 or name@alias"
        )
    return reference


def locate(db: Database | None, text: str, path: Path) -> tuple[int, Version]:
    """The row id and the version that a reference names; raises as :func:`locate_id` does.

    Raises:
        RegistryError: its rows are damaged.
    """
    row_id = locate_id(db, text, path)
    assert db is not None
    (found,) = select_each(db, [row_id])
    return row_id, demand_readable(found)


def locate_id(db: Database | None, text: str, path: Path) -> int:
    """The row id of the version that a reference names; ``db`` is None where no registry is at ``path`` yet.

    Raises:
        InvalidReferenceError: see :func:`registry_reference`.
        UnknownReferenceError: nothing has that name, number or alias.
    """
    reference = registry_reference(text)
    if db is None:
        raise UnknownReferenceError(
            f"{text!r}: there is no registry at {path} yet; `lorary import` or a training makes it"
        )
    parameters: list[object] = [reference.name]
    named = "FROM adapters a JOIN versions v ON v.adapter_id = a.id WHERE a.name = ?"
    if reference.number is not None:
        query = f"SELECT v.id {named} AND v.number = ?"
        parameters.append(reference.number)
    elif reference.alias is not None:
        query = f"SELECT v.id {named} AND v.id = (SELECT version_id FROM aliases WHERE adapter_id = a.id AND name = ?)"
        parameters.append(reference.alias)
    else:
        query = f"SELECT v.id {named} ORDER BY v.number DESC LIMIT 1"
    if found := db.execute(query, parameters).fetchone():
        return int(found[0])
    numbered = f"SELECT v.number {named} AND {WHOLE} ORDER BY 1"
    numbers = [int(number) for (number,) in db.execute(numbered, [reference.name])]
    if not numbers:
        raise UnknownReferenceError(_no_such_name(db, reference.name, path))
    wanted = f"version {reference.number}" if reference.alias is None else f"alias {reference.alias!r}"
    aliases = db.execute(
        f"SELECT {as_bytes('l.name')} FROM adapters a JOIN aliases l ON l.adapter_id = a.id WHERE a.name = ? "
        "ORDER BY 1",
        [reference.name],
    )
    holdings = _holdings(numbers, [alias for alias, *_ in texts(aliases)])
    raise UnknownReferenceError(f"{reference.name!r} has no {wanted}; it has {holdings}")


def _no_such_name(db: Database, name: str, path: Path) -> str:
    held = "FROM adapters a WHERE EXISTS (SELECT 1 FROM versions v WHERE v.adapter_id = a.id)"
    if db.execute(f"SELECT 1 {held} LIMIT 1").fetchone() is None:
        return f"no adapter named {name!r}: the registry {path} is empty"
    # A slip leaves the beginning or the end as it was; comparing with each of many thousand names would take seconds.
    alike = "(substr(a.name, 1, 1) = substr(?, 1, 1) OR substr(a.name, -2) = substr(?, -2))"
    rows = db.execute(f"SELECT a.name {held} AND {alike} AND abs(length(a.name) - ?) < 8", [name, name, len(name)])
    near = get_close_matches(name, [str(row[0]) for row in rows.fetchmany(_COMPARED)], n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"`{suggested('lorary list', path)}` shows what there is"
    return f"no adapter named {name!r} in {path}; {hint}"


def _holdings(numbers: Sequence[int], aliases: Sequence[str]) -> str:
    few = ", ".join(map(str, numbers))
    told = few if len(numbers) <= _SHOWN else f"{len(numbers)} from {numbers[0]} to {numbers[-1]}"
    label = "version" if len(numbers) == 1 else "versions"
    return f"{label} {told}, {'alias' if len(aliases) == 1 else 'aliases'} {', '.join(aliases) or 'none'}"
