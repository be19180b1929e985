"""Putting a new version's rows into the catalogue, inside a write transaction."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lorary.hub.errors import RegistryConflictError, UsageError
from lorary.hub.tables.catalogue import Description, select
from lorary.hub.values import FileEntry, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

Metrics = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class NewVersion:
    """All that a version's rows are made from, apart from its files and its number.

    ``base_folder`` is where its base is on this machine, see :func:`lorary.hub.provenance.private.own_folder`;
    ``created_at`` when it was first registered, None for now.
    """

    name: str
    domain: str
    task: str
    description: Description
    base_commit: str | None
    labels: tuple[str, ...]
    metrics: Metrics
    tags: tuple[str, ...]
    parents: tuple[str, ...]
    absent_parents: tuple[str, ...]
    strategy: str
    base_folder: str | None = None
    created_at: str | None = None


def check_time(text: str | None) -> str | None:
    """A time in ISO 8601, brought to UTC and seconds, as all times in the catalogue are; None for what isn't one."""
    try:
        time = datetime.fromisoformat(text) if text else None
        return time.astimezone(UTC).isoformat(timespec="seconds") if time and time.tzinfo else None
    except (ValueError, OverflowError):  # the latter where UTC has no year for it
        return None


def check_metrics(metrics: Metrics | None) -> dict[str, dict[str, float]]:
    """Metrics as plain floats by split and name.

    Raises:
        UsageError: they aren't splits of named numbers, or a number isn't finite.
    """
    checked: dict[str, dict[str, float]] = {}
    for split, values in (metrics or {}).items():
        if not isinstance(values, Mapping):
            raise UsageError(f"metrics[{split!r}]: expected names and numbers, such as {{'test': {{'f1': 0.9}}}}")
        checked[str(split)] = {str(name): _finite(f"{split}/{name}", value) for name, value in values.items()}
    return checked


def _finite(where: str, value: object) -> float:
    try:
        number = float(value)  # type: ignore[arg-type]  # numpy's and torch's scalars convert too
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"metric {where} is {value!r}; expected a finite number, leave it out where there is none")
    return number


def registered(db: Database, new: NewVersion) -> Version | None:
    """The version of that name with the same digest, if there is one.

    Raises:
        RegistryConflictError: the name stands for another domain or task.
    """
    held = "FROM adapters a JOIN versions v ON v.adapter_id = a.id WHERE a.name = ?"
    for domain, task in db.execute(f"SELECT a.domain, a.task {held} LIMIT 1", [new.name]).fetchall():
        if (domain, task) != (new.domain, new.task):
            raise RegistryConflictError(
                f"{new.name!r} stands for {domain}/{task} in this registry, "
                f"not for {new.domain}/{new.task}; choose another name"
            )
    same = select(db, "a.name = ? AND v.digest = ?", [new.name, new.description.digest])
    return next(iter(same.values()), None)


def insert(db: Database, new: NewVersion, files: Mapping[str, FileEntry], parents: Mapping[str, int]) -> Version:
    """Insert all rows of a version; ``parents`` maps the parents' references to their row ids."""
    adapter_id, number = _next_number(db, new)
    row = {
        "adapter_id": adapter_id,
        "number": number,
        **asdict(new.description),
        "labels": ", ".join(new.labels) or None,
        "created_at": new.created_at or datetime.now(UTC).isoformat(timespec="seconds"),
        "strategy": new.strategy,
    }
    version_id = db.table("versions").insert(row).last_pk
    children: dict[str, list[dict[str, object]]] = {
        "files": [{"name": name, **asdict(entry)} for name, entry in files.items()],
        "metrics": [
            {"split": split, "name": name, "value": value}
            for split, values in new.metrics.items()
            for name, value in values.items()
        ],
        "tags": [{"tag": tag} for tag in new.tags],
        "parents": [
            {"parent": parent, "parent_id": row_id}
            for parent, row_id in {**dict.fromkeys(new.absent_parents), **parents}.items()
        ],
    }
    for table, rows in children.items():
        db.table(table).insert_all({"version_id": version_id, **row} for row in rows)
    _remember_base(db, new)
    return select(db, "v.id = ?", [version_id])[version_id]


def _next_number(db: Database, new: NewVersion) -> tuple[int, int]:
    # A name without versions (all were removed) keeps its numbers, and may move to another domain or task.
    db.execute(
        "INSERT INTO adapters (name, domain, task, next_number) VALUES (?, ?, ?, 2) ON CONFLICT (name) DO UPDATE "
        "SET domain = excluded.domain, task = excluded.task, next_number = next_number + 1",
        [new.name, new.domain, new.task],
    )
    row = next(db.query("SELECT id, next_number - 1 AS number FROM adapters WHERE name = ?", [new.name]))
    return row["id"], row["number"]


def _remember_base(db: Database, new: NewVersion) -> None:
    description = new.description
    known = {description.base_id: new.base_commit, new.base_folder: None}
    for base, commit in known.items():
        if description.base_fingerprint and base:
            db.execute(
                'INSERT INTO bases (fingerprint, id, "commit") VALUES (?, ?, ?) ON CONFLICT (fingerprint, id) '
                'DO UPDATE SET "commit" = coalesce(excluded."commit", "commit")',
                [description.base_fingerprint, base, commit],
            )
