"""The rows of the pretrained bases: reading them as :class:`PretrainedBase` values, each for itself."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorary.hub.errors import RegistryError, UnsafeFileError, UsageError
from lorary.hub.files.store import Store
from lorary.hub.tables.catalogue import text_in, whole_in
from lorary.hub.tables.insertion import check_metrics
from lorary.hub.tables.readable import as_bytes
from lorary.hub.values import FileEntry, PretrainedBase, Unreadable

if TYPE_CHECKING:
    from sqlite_utils import Database


def named_rows(db: Database, name: str) -> list[tuple[int, str, object]]:
    """The row ids, fingerprints and digests of the pretrained bases of a name: one, or none."""
    query = "SELECT rowid, fingerprint, digest FROM bases WHERE digest IS NOT NULL AND id = ?"
    return list(db.execute(query, [name]))


def users_of(db: Database, name: str, fingerprints: Sequence[str], damaged: bool) -> list[str]:
    """The versions that were trained on a base, by its fingerprint; where its row is ``damaged``, by its name too."""
    marks = ", ".join("?" * len(fingerprints))
    named = "OR v.base_id = ? " if damaged else ""
    rows = db.query(
        "SELECT a.name || '@' || v.number AS reference FROM versions v JOIN adapters a ON a.id = v.adapter_id "
        f"WHERE v.base_fingerprint IN ({marks}) {named}ORDER BY a.name, v.number",
        [*fingerprints, name][: len(fingerprints) + damaged],
    )
    return [str(row["reference"]) for row in rows]


def base_rows(db: Database) -> list[tuple[int, str]]:
    """The row ids and names of all bases that were pretrained here, by name."""
    rows = db.execute(f"SELECT rowid, {as_bytes('id')} FROM bases WHERE digest IS NOT NULL ORDER BY id")
    return [(row_id, name.decode(errors="replace") if name else f"of row {row_id}") for row_id, name in rows]


def select_one_base(db: Database, store: Store, row_id: int, name: str) -> list[PretrainedBase | Unreadable]:
    """The base in one row, or what is known of it; nothing where it is no pretrained one any more."""
    try:
        return list(select_bases(db, store, "rowid = ?", [row_id]))
    except (RegistryError, UnsafeFileError) as error:
        return [Unreadable(str(name), str(error).removeprefix(f"base {name!r}: "))]
    except sqlite3.DatabaseError as error:  # a text that isn't UTF-8
        return [Unreadable(str(name), _damaged(error))]


def _damaged(error: Exception) -> str:
    return f"its row is damaged ({error}); go back to a copy of it"


def select_bases(
    db: Database, store: Store, where: str = "1", parameters: list[Any] | None = None
) -> list[PretrainedBase]:
    """The pretrained bases by name; ``where`` may use the columns of ``bases``.

    Raises:
        RegistryError: a row doesn't hold what its table says.
        UnsafeFileError: its digest isn't a sha256, or a link stands in the folder's place.
    """
    found = []
    for row in db.query(f"SELECT * FROM bases WHERE digest IS NOT NULL AND ({where}) ORDER BY id", parameters or []):
        try:
            files = db.query("SELECT * FROM base_files WHERE base = ? ORDER BY name", [row["id"]])
            found.append(_base(row, files, store))
        except (ValueError, TypeError, KeyError, OverflowError, AttributeError, RecursionError, UsageError) as error:
            raise RegistryError(f"base {row['id']!r}: {_damaged(error)}") from error
    return found


def _base(row: Mapping[str, Any], files: Iterable[Mapping[str, Any]], store: Store) -> PretrainedBase:
    details = json.loads(row["details"])
    if not isinstance(details["provenance"], dict):
        raise TypeError("its provenance is no object")
    return PretrainedBase(
        name=text_in(row["id"]),
        fingerprint=text_in(row["fingerprint"]),
        digest=text_in(row["digest"]),
        architecture=text_in(row["architecture"]),
        parameters=whole_in(row["parameters"]),
        created_at=text_in(row["created_at"]),
        metrics=check_metrics(details["metrics"]),
        provenance=details["provenance"],
        files={text_in(file["name"]): FileEntry(text_in(file["sha256"]), whole_in(file["size"])) for file in files},
        folder=store.folder_path(str(row["digest"])),
    )
