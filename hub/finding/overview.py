"""What the catalogue holds, by domain and task: how much, and the best score in each cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorary.hub.finding.query import FINITE
from lorary.hub.finding.search import check_metric
from lorary.hub.metrics import headline, lower_is_better
from lorary.hub.tables.readable import as_bytes, texts

if TYPE_CHECKING:
    from sqlite_utils import Database


@dataclass(frozen=True)
class Cell:
    """One domain and task: how many adapters and versions, and the best value on held-out rows.

    ``metric`` is the one asked for, or the one that stands for the cell; it and ``value`` and ``best`` (a reference)
    are None where no version was measured by it.
    """

    domain: str
    task: str
    adapters: int
    versions: int
    metric: str | None = None
    value: float | None = None
    best: str | None = None


def overview(db: Database, metric: str | None = None) -> list[Cell]:
    """The cells that hold any version, by domain and task.

    Raises:
        UnknownReferenceError: no version has the metric.
    """
    if metric is not None:
        check_metric(db, metric)
    rows = db.execute(
        "SELECT CAST(domain AS BLOB), CAST(task AS BLOB), count(*), sum(versions) FROM (SELECT a.domain, a.task, "
        "(SELECT count(*) FROM versions v WHERE v.adapter_id = a.id) AS versions FROM adapters a) "
        "WHERE versions > 0 GROUP BY domain, task ORDER BY domain, task"
    ).fetchall()
    cells = []
    for *cell, adapters, versions in rows:
        # One that isn't UTF-8 would stop all of them.
        domain, task = (bytes(text).decode(errors="replace") for text in cell)
        names = dict.fromkeys(_measured(db, domain, task), 0.0)
        chosen = metric if metric in names else None
        if metric is None and (first := headline(names)):
            chosen = first[0]
        found = _best(db, domain, task, chosen) if chosen else None
        told = (chosen, *found) if found else (None, None, None)
        cells.append(Cell(domain, task, int(adapters), int(versions), *told))
    return cells


def metrics_of(db: Database, task: str) -> set[str]:
    """The metrics on held-out rows of a task, in whatever domain."""
    domains = db.execute(f"SELECT DISTINCT {as_bytes('domain')} FROM adapters WHERE task = ?", [task]).fetchall()
    return {name for domain, *_ in texts(domains) for name in _measured(db, domain, task)}


def _measured(db: Database, domain: str, task: str) -> list[str]:
    """The metrics of a cell."""
    # Steps from one name to the next in the index instead of reading all rows.
    first = "SELECT min(name) FROM metrics WHERE split = 'test' AND domain = ?1 AND task = ?2"
    rows = db.execute(
        f"WITH RECURSIVE one (name) AS ({first} UNION ALL SELECT ({first} AND name > one.name) FROM one "
        f"WHERE one.name IS NOT NULL) SELECT {as_bytes('name')} FROM one WHERE name IS NOT NULL",
        [domain, task],
    )
    return [name for name, *_ in texts(rows)]


def _best(db: Database, domain: str, task: str, metric: str) -> tuple[float, str] | None:
    """The best value of a cell, and whose it is; None where none is a number."""
    way = "ASC" if lower_is_better(metric) else "DESC"
    row = db.execute(
        "SELECT m.value, a.name, v.number FROM metrics m CROSS JOIN versions v ON v.id = m.version_id "
        "CROSS JOIN adapters a ON a.id = v.adapter_id WHERE m.split = 'test' AND m.domain = ? AND m.task = ? "
        f"AND m.name = ? AND m.{FINITE} ORDER BY m.value {way}, m.version_id DESC LIMIT 1",
        [domain, task, metric],
    ).fetchone()
    return (float(row[0]), f"{row[1]}@{row[2]}") if row else None
