"""Aliases, and their history: who let each of them mean what, when and why.

The history is only added to. A rollback is a move of its own that names the move it takes back, so the history reads
as a stack: a move lays a meaning on top, a rollback takes the top one off. Hence a second rollback goes further back,
not forth again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorary.hub.errors import RegistryConflictError, RegistryError, UnknownReferenceError, UsageError
from lorary.hub.registry_path import suggested
from lorary.hub.tables.lookup import WHOLE, locate
from lorary.hub.values import AliasMove, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

USER_VARIABLE = "LORARY_USER"

LONGEST = 500
"""How many signs a reason or a user's name may have."""


@dataclass(frozen=True)
class Signature:
    """Who moves an alias, and why."""

    who: str
    why: str | None = None


@dataclass(frozen=True)
class Naming:
    """Aliases that are to mean a new version; ``only_free``: those alone that mean nothing yet."""

    aliases: tuple[str, ...]
    by: Signature
    only_free: bool


def signature(why: str | None = None, usual: str | None = None) -> Signature:
    """Signed by ``LORARY_USER``, else by the name that the user is logged in under.

    ``usual`` is the reason where none is given; one of blanks is none.

    Raises:
        UsageError: the user's name or the reason isn't a line of printable text.
    """
    return Signature(_user(), check_line(why or "", "the reason") or usual)


def _user() -> str:
    import getpass

    if named := os.environ.get(USER_VARIABLE, "").strip():
        return check_line(named, USER_VARIABLE)
    try:
        return check_line(getpass.getuser(), "the login name")
    except (OSError, KeyError, ImportError):  # a container's user may have no name
        return "unknown"


def check_line(text: str, what: str) -> str:
    """``text`` without the blanks around it, if it is one line that a terminal only prints.

    Raises:
        UsageError: it is longer than 500 signs, or holds line ends or control characters.
    """
    text = text.strip()
    if len(text) > LONGEST or not text.isprintable():
        found = f"{len(text)} signs" if len(text) > LONGEST else ascii(text[:LONGEST])
        raise UsageError(f"{what}: expected one line of printable text, at most {LONGEST} signs, found {found}")
    return text


def set_alias(db: Database, row_id: int, alias: str, by: Signature, undoes: int | None = None) -> bool:
    """Let an alias mean the version ``row_id`` and note the move; False where it means that already."""
    version = _row(db, "SELECT adapter_id, number FROM versions WHERE id = ?", row_id)
    before = meaning(db, version["adapter_id"], alias)
    if before == version["number"]:
        return False
    point_alias(db, version["adapter_id"], alias, row_id)
    _note(db, version["adapter_id"], alias, before, version["number"], by, undoes)
    return True


def point_alias(db: Database, adapter_id: int, alias: str, row_id: int) -> None:
    """Let an alias mean the version ``row_id``; the history is for the caller to add to."""
    db.execute(
        "INSERT INTO aliases (adapter_id, name, version_id) VALUES (?, ?, ?)"
        " ON CONFLICT (adapter_id, name) DO UPDATE SET version_id = excluded.version_id",
        [adapter_id, alias, row_id],
    )


def name_version(db: Database, version: Version, naming: Naming, path: Path) -> Version:
    """Set a version's aliases; the version as it is then."""
    if not naming.aliases:
        return version
    row_id, _ = locate(db, version.reference, path)
    adapter_id = adapter_of(db, version.name, path)
    for alias in naming.aliases:
        if not (naming.only_free and meaning(db, adapter_id, alias)):
            set_alias(db, row_id, alias, naming.by)
    return locate(db, version.reference, path)[1]


def drop_aliases(db: Database, row_id: int, aliases: tuple[str, ...], by: Signature) -> None:
    """Take aliases away from the version ``row_id`` and note it."""
    version = _row(db, "SELECT adapter_id, number FROM versions WHERE id = ?", row_id)
    for alias in aliases:
        db.execute("DELETE FROM aliases WHERE version_id = ? AND name = ?", [row_id, alias])
        _note(db, version["adapter_id"], alias, version["number"], None, by)


def roll_back(db: Database, name: str, alias: str, by: Signature, path: Path) -> AliasMove:
    """Let ``name@alias`` mean what it meant before; of meanings that were removed, the one before them.

    Raises:
        UnknownReferenceError: there is no such name, or the alias has never moved.
        RegistryConflictError: the alias meant nothing before that is still there.
    """
    adapter_id = adapter_of(db, name, path)
    moves = history(db, adapter_id, name, alias)
    now = meaning(db, adapter_id, alias)
    if not moves:
        known = "it has no alias of that name" if now is None else f"it has meant version {now} all along"
        raise UnknownReferenceError(f"{name}@{alias}: has no history to go back in; {known}")
    versions = {
        int(row["number"]): int(row["id"])
        for row in db.query(f"SELECT v.id, v.number FROM versions v WHERE v.adapter_id = ? AND {WHOLE}", [adapter_id])
    }
    removed = []
    for move in reversed(standing(moves)):
        target = move.from_number
        if target in versions and target != now:
            set_alias(db, versions[target], alias, by, undoes=move.id)
            return history(db, adapter_id, name, alias)[-1]
        if target is not None and target not in versions:
            removed.append(f"version {target}")
    removed = list(dict.fromkeys(removed))  # an alias may have meant one of them more than once
    gone = f"; {', '.join(removed)} of before {'were' if len(removed) > 1 else 'was'} removed"
    meant = "has meant nothing else" if now is None else f"meant nothing else before version {now}"
    shows = suggested(f"lorary alias {name} --history", path)
    raise RegistryConflictError(
        f"{name}@{alias}: can't go back, it {meant}{gone if removed else ''}; `{shows}` shows all"
    )


def standing(moves: list[AliasMove]) -> list[AliasMove]:
    """Of one alias's moves in their order, those that no rollback has taken back."""
    stack: list[AliasMove] = []
    for move in moves:
        if move.undoes is None:
            stack.append(move)
        else:
            while stack and stack[-1].id >= move.undoes:
                stack.pop()
    return stack


def meaning(db: Database, adapter_id: int, alias: str) -> int | None:
    """The number of the version that an alias means now."""
    found = db.execute(
        "SELECT v.number FROM aliases s JOIN versions v ON v.id = s.version_id "
        f"WHERE s.adapter_id = ? AND s.name = ? AND {WHOLE}",
        [adapter_id, alias],
    ).fetchone()
    return int(found[0]) if found else None


def adapter_of(db: Database, name: str, path: Path) -> int:
    """The row id of a name, which it keeps when all its versions were removed.

    Raises:
        UnknownReferenceError: there is no such name; the message offers near ones.
    """
    found = db.execute("SELECT id FROM adapters WHERE name = ?", [name]).fetchone()
    if found is None:
        locate(db, name, path)
    return int(found[0])


def history(db: Database, adapter_id: int, name: str, alias: str | None = None) -> list[AliasMove]:
    """The moves of a name's aliases, or of one of them, oldest first.

    Raises:
        RegistryError: a row doesn't hold what its table says.
    """
    query = "SELECT * FROM alias_moves WHERE adapter_id = ? AND alias = coalesce(?, alias) ORDER BY id"
    try:
        return [_move(name, row) for row in db.query(query, [adapter_id, alias])]
    except (TypeError, ValueError, OverflowError, sqlite3.DatabaseError) as error:  # an infinite number; no UTF-8
        raise RegistryError(f"the history of {name}'s aliases is damaged ({error}); go back to a copy of it") from error


def _move(name: str, row: Mapping[str, Any]) -> AliasMove:
    return AliasMove(
        id=int(row["id"]),
        name=name,
        alias=str(row["alias"]),
        from_number=_number(row["from_number"]),
        to_number=_number(row["to_number"]),
        at=str(row["at"]),
        who=str(row["who"]),
        why=None if row["why"] is None else str(row["why"]),
        undoes=_number(row["undoes"]),
        origin=None if row["origin"] is None else str(row["origin"]),
    )


def _note(
    db: Database,
    adapter_id: int,
    alias: str,
    before: int | None,
    after: int | None,
    by: Signature,
    undoes: int | None = None,
) -> None:
    at = datetime.now(UTC).isoformat(timespec="seconds")
    insert_move(db, adapter_id, AliasMove(0, "", alias, before, after, at, by.who, by.why, undoes))


def insert_move(db: Database, adapter_id: int, move: AliasMove) -> int:
    """Add a move to the history, under the next id, which is returned; the move's own and its name don't matter."""
    row = {
        "adapter_id": adapter_id,
        "alias": move.alias,
        "from_number": move.from_number,
        "to_number": move.to_number,
        "at": move.at,
        "who": move.who,
        "why": move.why,
        "undoes": move.undoes,
        "origin": move.origin,
    }
    return int(db.table("alias_moves").insert(row).last_pk)


def _row(db: Database, query: str, row_id: int) -> dict[str, Any]:
    return dict(next(db.query(query, [row_id])))


def _number(value: Any) -> int | None:
    return None if value is None else int(value)
