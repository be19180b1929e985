"""Which version of the catalogue is on which remote: the table ``remotes``."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lorary.hub.registry import Registry
from lorary.hub.tables.database import reading, writing
from lorary.hub.tables.lookup import WHOLE, locate
from lorary.hub.tables.readable import as_bytes, texts


@dataclass(frozen=True)
class Link:
    """A version that was pushed to a remote or pulled from it: ``commit`` is where it is there."""

    name: str
    number: int
    remote: str
    commit: str
    at: str


def remember(registry: Registry, reference: str, remote: str, commit: str) -> None:
    """Note that a version is on a remote. Raises UnknownReferenceError when it has been removed meanwhile."""
    with writing(registry.path) as db:
        row_id, _ = locate(db, reference, registry.path)
        db.execute(
            'INSERT INTO remotes (version_id, remote, "commit", at) VALUES (?, ?, ?, ?) ON CONFLICT (version_id, '
            'remote) DO UPDATE SET "commit" = excluded."commit", at = excluded.at WHERE "commit" <> excluded."commit"',
            [row_id, remote, commit, datetime.now(UTC).isoformat(timespec="seconds")],
        )


def adopt(registry: Registry, reference: str, places: Collection[str]) -> None:
    """Link the children of a version that came before it: until now they knew only where on a remote it is."""
    marks = ", ".join("?" for _ in places)
    with writing(registry.path) as db:
        row_id, _ = locate(db, reference, registry.path)
        db.execute(
            f"UPDATE OR IGNORE parents SET parent = ?, parent_id = ? WHERE parent_id IS NULL AND parent IN ({marks})",
            [reference, row_id, *places],
        )


def links(path: Path, name: str | None = None) -> list[Link]:
    """What is known of remotes, of one name or of all, ordered by name, remote and number."""
    with reading(path) as db:
        if db is None:
            return []
        name_of, *told = map(as_bytes, ("a.name", "r.remote", 'r."commit"', "r.at"))
        rows = db.execute(
            f"SELECT {name_of}, v.number, {', '.join(told)} FROM remotes r JOIN versions v ON v.id = r.version_id "
            f"JOIN adapters a ON a.id = v.adapter_id WHERE {WHOLE} "
            "AND (? IS NULL OR a.name = ?) ORDER BY a.name, r.remote, v.number",
            [name, name],
        )
        return [Link(*row) for row in texts(rows)]
