"""Taking versions out of the catalogue, and deleting the files that only they needed.

Files come into the store in the write transaction that makes a row refer to them, and are deleted in write transactions
that found no such row. So a removal and `lorary gc` are safe beside commands that are adding something.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import RegistryConflictError, UsageError
from lorary.hub.files.store import Store
from lorary.hub.keeping.aliases import drop_aliases, signature
from lorary.hub.tables.database import writing
from lorary.hub.tables.lookup import locate_id
from lorary.hub.tables.readable import as_bytes, select_each, texts
from lorary.hub.values import Unreadable, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

_TOLD = 8  # names in an error before the rest is only counted


def remove_rows(
    db: Database, reference: str, path: Path, why: str | None, *, force: bool
) -> tuple[Version | Unreadable, list[str]]:
    """Remove a version's rows; its files (their sha256) are for :func:`sweep`, after the transaction.

    Raises:
        UsageError: a bare name that has several versions, or the reason isn't a line of text.
        RegistryConflictError: an alias or a version trained from it needs it, and ``force`` isn't set.
        UnknownReferenceError: there is no such version.
    """
    row_id = locate_id(db, reference, path)
    (version,) = select_each(db, [row_id])
    name, *_ = version.reference.rpartition("@")
    named = f"SELECT {as_bytes('name')} FROM aliases WHERE version_id = ? ORDER BY 1"
    aliases = [alias for alias, *_ in texts(db.execute(named, [row_id]))]
    held = db.execute(f"SELECT {as_bytes('sha256')} FROM files WHERE version_id = ?", [row_id])
    objects = [sha256 for sha256, *_ in texts(held)]
    by = signature(why, f"{version.reference} was removed")  # not before: an alias may move until the lock is held
    (count,) = db.execute(
        "SELECT count(*) FROM versions WHERE adapter_id = (SELECT adapter_id FROM versions WHERE id = ?)", [row_id]
    ).fetchone()
    if count > 1 and reference == name:
        raise UsageError(f"{reference!r} has {count} versions; say which, such as {version.reference}")
    children = db.query(
        "SELECT a.name || '@' || v.number AS reference FROM parents p JOIN versions v ON v.id = p.version_id "
        "JOIN adapters a ON a.id = v.adapter_id WHERE p.parent_id = ? ORDER BY a.name, v.number",
        [row_id],
    )
    needed = [f"{name}@{alias}" for alias in aliases] + [str(row["reference"]) for row in children]
    if needed and not force:
        more = f" and {len(needed) - _TOLD} more" if len(needed) > _TOLD else ""
        raise RegistryConflictError(
            f"{version.reference} is needed by {', '.join(needed[:_TOLD])}{more}; move or remove these first, "
            "or force it"
        )
    drop_aliases(db, row_id, tuple(aliases), by)
    db.execute("DELETE FROM aliases WHERE version_id = ?", [row_id])  # whose names are damaged
    db.execute("DELETE FROM versions WHERE id = ?", [row_id])
    return version, objects


def sweep(path: Path, store: Store, objects: Iterable[str]) -> None:
    """Delete those of the objects (sha256) that no version refers to.

    Raises:
        RegistryError: the registry can't be written, or an object can't be deleted.
    """
    with writing(path) as db:
        for sha256 in set(objects):
            if not needs_object(db, sha256):
                store.delete(sha256)


def sweep_folder(path: Path, store: Store, digest: str) -> None:
    """Delete the folder of a base, if no base refers to it. Raises as :func:`sweep` does."""
    with writing(path) as db:
        if not needs_folder(db, digest):
            store.delete_folder(digest)


def needs_object(db: Database, sha256: str) -> bool:
    """Does a version refer to this object?"""
    return db.execute("SELECT 1 FROM files WHERE sha256 = ?", [sha256]).fetchone() is not None


def needs_folder(db: Database, digest: str) -> bool:
    """Does a base refer to this folder?"""
    return db.execute("SELECT 1 FROM bases WHERE digest = ?", [digest]).fetchone() is not None
