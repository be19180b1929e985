"""Checking that the files are what the catalogue says, byte by byte."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.errors import ChangedFilesError, CheckpointError, RegistryError, UnsafeFileError
from lorary.hub.files.store import Store, hash_file
from lorary.hub.finding.fulltext import count_stale
from lorary.hub.pretrained_bases import Bases
from lorary.hub.registry_path import suggested
from lorary.hub.tables.catalogue import describe
from lorary.hub.tables.database import reading
from lorary.hub.tables.lookup import locate_id
from lorary.hub.tables.readable import as_bytes, select_each, texts
from lorary.hub.values import FileEntry, Finding, Unreadable, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

_AT_ONCE = 1_000  # versions in memory at a time
_SHOWN = 40  # signs of a value that is none

_ALL = """
SELECT v.id FROM adapters a JOIN versions v ON v.adapter_id = a.id ORDER BY a.name, v.number
"""

_NO_NUMBER = """
SELECT a.name || '@' || v.number AS reference, m.split, m.name,
CASE WHEN typeof(m.value) = 'text' THEN CAST(m.value AS BLOB) ELSE m.value END AS value FROM metrics m
JOIN versions v ON v.id = m.version_id JOIN adapters a ON a.id = v.adapter_id
WHERE typeof(m.value) <> 'real' OR abs(m.value) > 1.7976931348623157e308 ORDER BY a.name, v.number, m.split, m.name
"""

_UNTRACED = """
SELECT CAST(a.name || '@' || m.alias AS BLOB) AS alias, m.to_number AS told,
CASE WHEN typeof(v.number) = 'integer' THEN v.number END AS meant FROM alias_moves m
JOIN adapters a ON a.id = m.adapter_id
LEFT JOIN aliases s ON s.adapter_id = m.adapter_id AND s.name = m.alias LEFT JOIN versions v ON v.id = s.version_id
WHERE m.to_number IS NOT v.number
AND m.id = (SELECT max(id) FROM alias_moves l WHERE l.adapter_id = m.adapter_id AND l.alias = m.alias)
ORDER BY 1
"""


def open_version(store: Store, version: Version) -> Checkpoint:
    """A version's checkpoint, read from the store.

    Raises:
        RegistryError: a file is missing from the store.
        CheckpointError: a file isn't what its name says.
    """
    files: dict[str, Path] = {}
    for name, entry in version.files.items():
        if name in ("", ".", "..") or "/" in name or "\\" in name:
            raise UnsafeFileError(f"{version.reference}: the file name {name!r} leaves its folder")
        files[name] = store.path(entry.sha256)
        if not files[name].is_file():
            raise RegistryError(
                f"{version.reference}: {name} is missing from {store.folder}; `lorary verify` tells what else is, "
                "then remove the version and register it again from its folder"
            )
    return replace(read_checkpoint(files, shown=version.reference), catalogued_task=version.task)


def demand_registered(version: Version, checkpoint: Checkpoint) -> None:
    """Hash a version's files before they leave its store: what has rotted there isn't the version.

    Raises:
        ChangedFilesError: one of them isn't what was registered.
        CheckpointError: one of them can't be read.
    """
    for name, path in checkpoint.files.items():
        try:
            found = hash_file(path)
        except OSError as error:
            raise CheckpointError(f"{version.reference}: {name} can't be read ({error.strerror or error})") from error
        if found != version.files[name]:
            raise ChangedFilesError(
                f"{version.reference}: {name} isn't what was registered; `lorary verify` on its registry tells more"
            )


def check_version(store: Store, version: Version, hashed: dict[str, FileEntry]) -> Iterator[Finding]:
    """What is wrong with one version; ``hashed`` remembers objects, which versions may share."""
    complete = True
    for name, entry in version.files.items():
        if problem := _check_file(store, name, entry, hashed):
            complete = False
            yield Finding(version.reference, problem)
    if not complete:
        return
    try:
        actual = asdict(describe(open_version(store, version)))
    except (CheckpointError, RegistryError, OSError) as error:
        yield Finding(version.reference, str(error).removeprefix(f"{version.reference}: "))
        return
    stated = {name: getattr(version, name) for name in actual}
    stated["manifest"] = version.manifest.to_json() if version.manifest else None
    for field, value in stated.items():
        if value != actual[field]:
            detail = "" if field == "manifest" else f": {actual[field]!r} in the files, {value!r} in the catalogue"
            yield Finding(version.reference, f"the {field} differs{detail}")


def _check_file(store: Store, name: str, entry: FileEntry, hashed: dict[str, FileEntry]) -> str | None:
    try:
        path = store.path(entry.sha256)
        if not path.is_file():
            return f"{name}: missing from {store.folder}"
        if entry.sha256 not in hashed:
            hashed[entry.sha256] = hash_file(path)
    except (UnsafeFileError, RegistryError, OSError) as error:
        return f"{name}: {error}"
    found = hashed[entry.sha256]
    if found.size != entry.size:
        return f"{name}: {found.size} bytes, expected {entry.size}"
    return f"{name}: its content has changed ({path})" if found.sha256 != entry.sha256 else None


def check_database(db: Database) -> Iterator[Finding]:
    """What SQLite itself finds wrong with the file and its foreign keys, and whether what follows from rows does."""
    for row in db.query("PRAGMA integrity_check(10)"):
        if (message := str(next(iter(row.values())))) != "ok":
            yield Finding(None, f"SQLite: {message}")
    for row in db.query("PRAGMA foreign_key_check"):
        yield Finding(None, f"a row of {row['table']} refers to a row of {row['parent']} that isn't there")
    if stale := count_stale(db):
        remedy = "INSERT INTO search_pending SELECT rowid FROM search UNION SELECT id FROM versions"
        yield Finding(None, f"the full-text index is wrong for {stale} version(s); `{remedy}` has it made anew")
    misplaced = (
        "SELECT count(*) FROM metrics m JOIN versions v ON v.id = m.version_id JOIN adapters a ON a.id = v.adapter_id "
        "WHERE m.domain IS NOT a.domain OR m.task IS NOT a.task"
    )
    if count := int(db.execute(misplaced).fetchone()[0]):
        yield Finding(
            None, f"{count} metric(s) have another domain or task than their adapter; set adapters.domain anew"
        )


def check_metric_values(db: Database) -> Iterator[Finding]:
    """Metrics that aren't finite numbers: somebody else's doing."""
    for row in db.query(_NO_NUMBER):
        found = row["value"]
        value = (found.decode(errors="replace") if isinstance(found, bytes) else str(found))[:_SHOWN]
        yield Finding(row["reference"], f"its metric {row['split']}/{row['name']} is {value!r}, no finite number")


def check_aliases(db: Database) -> Iterator[Finding]:
    """Aliases that mean something else than their history says; one that is older than the history has none."""
    for row in db.query(_UNTRACED):
        alias = bytes(row["alias"]).decode(errors="replace")
        meant, told = ("nothing" if number is None else f"version {number}" for number in (row["meant"], row["told"]))
        yield Finding(
            None,
            f"{alias} means {meant}, but its history ends with {told}: it was changed without lorary; "
            "`lorary alias` sets it right",
        )


def check_leftovers(path: Path, store: Store) -> Iterator[Finding]:
    """Notes on files that no version and no base refers to."""
    objects, folders = set(store.objects()), set(store.folders())
    with reading(path) as db:  # after the files: they come in the transaction that refers to them
        rows = db.execute(f"SELECT DISTINCT {as_bytes('sha256')} FROM files") if db else ()
        objects.difference_update(sha256 for sha256, *_ in texts(rows))
        rows = db.execute(f"SELECT {as_bytes('digest')} FROM bases") if db else ()
        folders.difference_update(digest for digest, *_ in texts(rows))
    if left := len(objects) + len(folders) + len(store.incoming()):
        yield Finding(
            None,
            f"{left} file(s) in {store.folder} belong to no version: of a command that is at work, or one that was "
            f"broken off (`{suggested('lorary gc', path)}` deletes those)",
            "note",
        )


def verify(path: Path, store: Store, reference: str | None) -> list[Finding]:
    """See :meth:`lorary.hub.registry.Registry.verify`."""
    findings: list[Finding] = []
    with reading(path) as db:
        if reference is not None:
            ids = [locate_id(db, reference, path)]
        elif db is None:
            return []
        else:
            ids = [int(row_id) for (row_id,) in db.execute(_ALL)]
            findings += check_database(db)
            findings += check_aliases(db)
            findings += check_metric_values(db)
    # Hashing may take minutes and holds no lock; what is removed meanwhile is no finding.
    hashed: dict[str, FileEntry] = {}
    for start in range(0, len(ids), _AT_ONCE):
        findings += _check_some(path, store, ids[start : start + _AT_ONCE], hashed)
    if reference is None:
        findings += check_leftovers(path, store)
        findings += Bases(path, store).verify()
    return findings


def _check_some(path: Path, store: Store, ids: Sequence[int], hashed: dict[str, FileEntry]) -> list[Finding]:
    found: list[Finding] = []
    for version in _read(path, ids):
        if isinstance(version, Unreadable):
            found.append(Finding(version.reference, version.problem))
        else:
            found += check_version(store, version, hashed)
    there = {version.reference for version in _read(path, ids)} if found else set()
    return [finding for finding in found if finding.reference in there]


def _read(path: Path, ids: Sequence[int]) -> list[Version | Unreadable]:
    with reading(path) as db:
        return list(select_each(db, ids)) if db else []
