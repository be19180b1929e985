"""Stores what a registry of each schema looks like: a dump in `tests/hub/registries/` for every migration without one.

    python tests/helpers/dump_registry.py

Each dump is the one before it, brought up to date by the migration, with rows in what that has added; rows of a new
migration are another entry in :data:`ROWS`. A stored dump is never made anew: it stands for registries that are out in
the world.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlite_utils

from lorary.hub.tables import schema

STORED = Path(__file__).parents[1] / "hub" / "registries"

ROWS = {
    "m003": (
        # By another program, so that the full-text index is still to follow.
        "INSERT INTO tags VALUES (3, 'by-hand')",
    ),
    "m004": (
        "INSERT INTO alias_moves VALUES (1, 1, 'prod', NULL, 1, '2026-11-28T19:20:00+00:00', 'ann', 'first good one')",
        "INSERT INTO alias_moves VALUES (2, 1, 'candidate', NULL, 2, '2026-11-28T19:21:00+00:00', 'ben', NULL)",
    ),
    "m005": (
        "INSERT INTO remotes VALUES (2, 'ann/finance-tone', '1234567890abcdef1234567890abcdef12345678', "
        "'2026-11-28T19:22:00+00:00')",
    ),
    "m006": (
        "INSERT INTO alias_moves VALUES (3, 1, 'prod', 1, 2, '2026-11-28T19:23:00+00:00', 'ann', NULL, NULL)",
        "INSERT INTO alias_moves VALUES (4, 1, 'prod', 2, 1, '2026-11-28T19:24:00+00:00', 'ben', 'slower', 3)",
    ),
    "m007": (
        "INSERT INTO alias_moves VALUES (5, 3, 'live', NULL, 1, '2026-11-28T19:25:00+00:00', 'eve', NULL, NULL, "
        "'~/team/registry.db: - to 4')",
        "INSERT INTO aliases VALUES (3, 'live', 4)",
    ),
}


def restore(stem: str, path: Path) -> None:
    """Make the registry of a stored dump, without its files."""
    db = sqlite3.connect(path)
    db.executescript((STORED / f"{stem}.sql").read_text(encoding="utf-8"))
    db.close()


def migrated(path: Path, count: int, shown: str) -> None:
    """Bring a registry, or a new file, to the schema of the first ``count`` migrations."""
    db = sqlite_utils.Database(sqlite3.connect(path, isolation_level=None), execute_plugins=False)
    every = schema.MIGRATIONS
    try:
        schema.MIGRATIONS = every[:count]
        schema.migrate(db, shown)
    finally:
        schema.MIGRATIONS = every
        db.close()


def dumped(db: sqlite3.Connection) -> Iterator[str]:
    """A registry as SQL: tables with their rows, then what would act on these; the full text by its words."""
    yield "BEGIN TRANSACTION;"
    virtual = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL%'")]
    parts = {f"{name}_{part}" for name in virtual for part in ("data", "idx", "content", "docsize", "config")}
    made = [(kind, name, sql) for kind, name, sql in db.execute("SELECT type, name, sql FROM sqlite_master") if sql]
    for kind, name, sql in made:
        if kind == "table" and name not in parts:
            yield f"{sql};"
            columns = [row[1] for row in db.execute(f'PRAGMA table_info("{name}")')]
            if name in virtual:
                columns.insert(0, "rowid")
            listed, values = (
                ", ".join(f'"{one}"' for one in columns),
                " || ', ' || ".join(f'quote("{one}")' for one in columns),
            )
            for (row,) in db.execute(f'SELECT {values} FROM "{name}" ORDER BY 1'):
                yield f'INSERT INTO "{name}" ({listed}) VALUES ({row});'
    for kind, _, sql in made:
        if kind != "table":
            yield f"{sql};"
    yield "COMMIT;"
    (version,) = db.execute("PRAGMA user_version").fetchone()
    yield f"PRAGMA user_version = {version};"


def main(folder: Path) -> None:
    """Write the dumps that are missing; ``folder`` is for scratch files."""
    stems = [name.partition("_")[0] for name, _ in schema.MIGRATIONS]
    for count, stem in enumerate(stems, start=1):
        target = STORED / f"{stem}.sql"
        if target.exists():
            continue
        path = folder / f"{stem}.db"
        restore(stems[count - 2], path)
        migrated(path, count, stem)
        db = sqlite3.connect(path)
        for statement in ROWS[stem]:
            db.execute(statement)
        db.commit()
        target.write_text("\n".join(dumped(db)) + "\n", encoding="utf-8")
        db.close()
        print(target)


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory(prefix="lorary-dump-") as temporary:
        main(Path(temporary))
