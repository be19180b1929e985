"""The tables of ``registry.db``, as ordered named migrations.

Once released, a migration is never edited: a change of the tables is a new function at the end.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING

from lorary.hub.errors import RegistryError, RegistryVersionError
from lorary.hub.tables.schema_finding import FULL_TEXT, INDICES, VIEWS

if TYPE_CHECKING:
    from sqlite_utils import Database
    from sqlite_utils.migrations import Migrations

_CATALOGUE = """
CREATE TABLE adapters (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    domain TEXT NOT NULL,
    task TEXT NOT NULL,
    -- kept here, not derived from the versions, so that the number of a removed version isn't given out again
    next_number INTEGER NOT NULL DEFAULT 1
);
CREATE INDEX adapters_domain_task ON adapters (domain, task);
CREATE INDEX adapters_task ON adapters (task);

CREATE TABLE versions (
    id INTEGER PRIMARY KEY,
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    number INTEGER NOT NULL,
    digest TEXT NOT NULL,
    base_id TEXT,
    base_fingerprint TEXT,
    method TEXT NOT NULL,
    quantization TEXT NOT NULL,
    rank INTEGER,
    parameters INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_at TEXT NOT NULL,
    strategy TEXT NOT NULL,
    manifest TEXT,
    UNIQUE (adapter_id, number),
    UNIQUE (adapter_id, digest)
);
CREATE INDEX versions_digest ON versions (digest);
CREATE INDEX versions_base_id ON versions (base_id);
CREATE INDEX versions_base_fingerprint ON versions (base_fingerprint);

CREATE TABLE files (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (version_id, name)
);
CREATE INDEX files_sha256 ON files (sha256);

CREATE TABLE metrics (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    split TEXT NOT NULL,
    name TEXT NOT NULL,
    value REAL NOT NULL,
    PRIMARY KEY (version_id, split, name)
);

CREATE TABLE aliases (
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    name TEXT NOT NULL,
    version_id INTEGER NOT NULL REFERENCES versions (id),
    PRIMARY KEY (adapter_id, name)
);
CREATE INDEX aliases_version ON aliases (version_id);

CREATE TABLE tags (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    tag TEXT NOT NULL,
    PRIMARY KEY (version_id, tag)
);
CREATE INDEX tags_tag ON tags (tag);

CREATE TABLE lineage (
    version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE,
    -- the reference stays true when the parent is removed, since numbers aren't given out again
    parent TEXT NOT NULL,
    parent_id INTEGER REFERENCES versions (id) ON DELETE SET NULL,
    PRIMARY KEY (version_id, parent)
);
CREATE INDEX lineage_parent ON lineage (parent_id);

CREATE TABLE bases (
    fingerprint TEXT NOT NULL,
    id TEXT NOT NULL,
    "commit" TEXT,
    PRIMARY KEY (fingerprint, id)
);
CREATE INDEX bases_id ON bases (id);
"""


def _run(db: Database, script: str) -> None:
    """Execute the statements of a script, each of which ends where a line does.

    ``executescript`` looks for an end after every sign, and took half of the time that a new registry takes.
    """
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            db.execute(statement)
            statement = ""


def _m001_catalogue(db: Database) -> None:
    _run(db, _CATALOGUE)


def _m002_pretrained_bases(db: Database) -> None:
    # Empty but for bases that were pretrained here: of the others only the fingerprint is known, from their adapters.
    for column in ("digest TEXT", "architecture TEXT", "parameters INTEGER", "created_at TEXT", "details TEXT"):
        db.execute(f"ALTER TABLE bases ADD COLUMN {column}")
    db.execute("CREATE UNIQUE INDEX bases_pretrained ON bases (id) WHERE digest IS NOT NULL")
    db.execute(
        "CREATE TABLE base_files (base TEXT NOT NULL, name TEXT NOT NULL, sha256 TEXT NOT NULL, size INTEGER NOT NULL, "
        "PRIMARY KEY (base, name))"
    )


def _m003_finding(db: Database) -> None:
    # The name `lineage` is for the view that people read.
    db.execute("ALTER TABLE lineage RENAME TO parents")
    db.execute("DROP INDEX lineage_parent")
    db.execute("CREATE INDEX parents_parent ON parents (parent_id)")
    # The labels stand in the manifest too, but SQL in triggers may not read JSON.
    db.execute("ALTER TABLE versions ADD COLUMN labels TEXT")
    for row_id, manifest in db.execute("SELECT id, manifest FROM versions WHERE manifest IS NOT NULL").fetchall():
        db.execute("UPDATE versions SET labels = ? WHERE id = ?", [_labels(manifest), row_id])
    for script in (FULL_TEXT, INDICES, VIEWS):
        _run(db, script)


def _labels(manifest: str) -> str | None:
    try:
        labels = json.loads(manifest)["labels"]
        text = ", ".join(map(str, labels)) if isinstance(labels, list) else None
        return text and text.encode("utf-8", "replace").decode()
    except (ValueError, KeyError, TypeError, RecursionError):
        return None  # a damaged row must not hide the others


_ALIAS_MOVES = """
CREATE TABLE alias_moves (
    id INTEGER PRIMARY KEY,
    adapter_id INTEGER NOT NULL REFERENCES adapters (id),
    alias TEXT NOT NULL,
    -- numbers, not row ids: what an alias once meant stays true when that version is removed
    from_number INTEGER,
    to_number INTEGER,
    at TEXT NOT NULL,
    who TEXT NOT NULL,
    why TEXT
);
CREATE INDEX alias_moves_alias ON alias_moves (adapter_id, alias, id);
CREATE TRIGGER alias_moves_are_not_changed BEFORE UPDATE ON alias_moves
BEGIN SELECT RAISE(ABORT, 'the history of aliases is only added to'); END;
CREATE TRIGGER alias_moves_are_not_deleted BEFORE DELETE ON alias_moves
BEGIN SELECT RAISE(ABORT, 'the history of aliases is only added to'); END;
"""


def _m004_alias_moves(db: Database) -> None:
    _run(db, _ALIAS_MOVES)


def _m005_remotes(db: Database) -> None:
    # Where each version was pushed to or pulled from: a repository or a shared folder, and its commit there.
    db.execute(
        "CREATE TABLE remotes (version_id INTEGER NOT NULL REFERENCES versions (id) ON DELETE CASCADE, "
        'remote TEXT NOT NULL, "commit" TEXT NOT NULL, at TEXT NOT NULL, PRIMARY KEY (version_id, remote))'
    )


def _m006_rollbacks(db: Database) -> None:
    # What tells a rollback from a move that happens to go to an earlier version.
    db.execute("ALTER TABLE alias_moves ADD COLUMN undoes INTEGER REFERENCES alias_moves (id)")


def _m007_origins(db: Database) -> None:
    # Of a move that came with another registry: that registry, and the versions' numbers there. NULL for one made here.
    db.execute("ALTER TABLE alias_moves ADD COLUMN origin TEXT")


MIGRATIONS: tuple[tuple[str, Callable[[Database], None]], ...] = (
    ("m001_catalogue", _m001_catalogue),
    ("m002_pretrained_bases", _m002_pretrained_bases),
    ("m003_finding", _m003_finding),
    ("m004_alias_moves", _m004_alias_moves),
    ("m005_remotes", _m005_remotes),
    ("m006_rollbacks", _m006_rollbacks),
    ("m007_origins", _m007_origins),
)
"""Name and function of each migration, oldest first."""


def _steps() -> Migrations:
    from sqlite_utils.migrations import Migrations

    steps = Migrations("lorary")
    for name, function in MIGRATIONS:
        steps(name=name)(function)
    return steps


def is_current(db: Database, shown: str) -> bool:
    """True for an up-to-date registry, False for an empty file or an older registry; ``shown`` names it in errors.

    Raises:
        RegistryVersionError: a newer lorary has written to it.
        RegistryError: it is a SQLite file of something else.
    """
    applied = {step.name for step in _steps().applied(db)}
    known = {name for name, _ in MIGRATIONS}
    if not applied and db.table_names():
        raise RegistryError(f"{shown}: a SQLite file, but not a lorary registry; name another one")
    version = int(db.execute("PRAGMA user_version").fetchone()[0])
    if applied - known or version > len(MIGRATIONS):
        newest = max(applied - known, default=f"number {version}")
        raise RegistryVersionError(
            f"{shown}: written by a newer lorary (its schema has {newest}, this one knows {len(MIGRATIONS)} "
            "migrations); upgrade lorary to use it"
        )
    return applied == known


def migrate(db: Database, shown: str) -> None:
    """Bring the tables up to date; call it inside a write transaction. Raises as :func:`is_current` does."""
    if not is_current(db, shown):
        _steps().apply(db)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")
