"""The best version for a purpose, among those that are compatible with a base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import UnknownReferenceError, UsageError
from lorary.hub.finding.overview import metrics_of
from lorary.hub.finding.query import COLUMNS, as_one, find_page, measured_among, metric_order, tasks_of
from lorary.hub.finding.search import Condition, Filter, check_unmade, conditions_for, known_fingerprints
from lorary.hub.metrics import lower_is_better, most_telling
from lorary.hub.tables.readable import demand_readable, select_each
from lorary.hub.values import Unreadable, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

_LOOKED_AT = 1_000  # versions whose metrics and bases an error tells
_TOLD = 5
_METRICS = "SELECT DISTINCT name FROM metrics WHERE split = 'test' AND version_id IN"


@dataclass(frozen=True)
class Choice:
    """The best version, its ``metric``'s value, and among how many with that metric it was chosen.

    ``compatible`` is True where its base's fingerprint is that of the base asked for, None where it carries none, or no
    base was asked for. ``notes`` are lines for the user.
    """

    version: Version
    metric: str
    value: float
    among: int
    compatible: bool | None
    notes: tuple[str, ...] = ()


def choose_best(db: Database | None, wanted: Filter, metric: str | None, path: Path) -> Choice:
    """The version with the best ``metric`` on held-out rows among those wanted; the newer one of equals.

    Without a metric it is the one that tables show for what fits, which must then be of one task. Where a base is
    wanted, only its fingerprint counts. What names the base and carries no fingerprint is chosen only where nothing is
    known to fit, with a note.

    Raises:
        UsageError: a condition that can't be one; without a metric, what fits is of several tasks.
        UnknownReferenceError: no version fits, or none of them has the metric; the message says what there is.
    """
    if db is None:
        check_unmade(wanted, path)
        raise UnknownReferenceError(f"there is no registry at {path} yet; `lorary import` or a training makes it")
    conditions = conditions_for(db, replace(wanted, base=None), path)
    if metric is None:
        metric = _telling_metric(db, wanted, path)
    if wanted.base is None:
        if chosen := _best(db, conditions, metric, None):
            return chosen
        raise UnknownReferenceError(f"no best {metric!r} in {path}: {_why_not(db, conditions)}")
    fingerprints = known_fingerprints(db, wanted.base)
    notes = _notes_on(wanted.base, fingerprints)
    known = [*conditions, _with_fingerprint(fingerprints)]
    unknown = [*conditions, _without_fingerprint(wanted.base)]
    verified = _best(db, known, metric, True)
    unverified = _best(db, unknown, metric, None)
    if verified is None and unverified is None:
        why = _why_not(db, conditions_for(db, wanted, path), conditions, wanted.base)
        raise UnknownReferenceError(f"no best {metric!r} in {path}: {why}")
    if verified is None:
        assert unverified is not None
        note = (
            f"base unverified: {unverified.version.reference} doesn't carry its base's fingerprint, so that whether it "
            f"fits {wanted.base} can't be known before it is loaded"
        )
        return replace(unverified, notes=(*unverified.notes, *notes, note))
    if unverified is not None and _better(unverified, verified):
        note = (
            f"{unverified.version.reference} has {metric} {unverified.value:.4g}, but doesn't carry its base's "
            "fingerprint, so that whether it fits can't be known before it is loaded"
        )
        notes = (*notes, note)
    return replace(verified, notes=(*verified.notes, *notes))


def _telling_metric(db: Database, wanted: Filter, path: Path) -> str:
    """The metric that tables show for the versions wanted, of one task."""
    fitting = conditions_for(db, wanted, path)
    one = as_one(db, fitting)
    tasks = tasks_of(db, one)
    if len(tasks) > 1:
        raise UsageError(
            f"expected one task to choose in, found {', '.join(tasks)}, whose scores can't be compared; give --task, "
            "or the --metric that decides"
        )
    for task in tasks:
        for name in measured_among(db, one, most_telling(metrics_of(db, task))):
            return name
    why = _why_not(db, fitting, conditions_for(db, replace(wanted, base=None), path), wanted.base)
    raise UnknownReferenceError(f"no best version in {path}: {why}")


def _best(db: Database, conditions: Sequence[Condition], metric: str, compatible: bool | None) -> Choice | None:
    damaged: list[Unreadable] = []
    for limit in (1, _LOOKED_AT):  # more than one only where the best can't be read
        page = find_page(db, conditions, metric_order(metric), limit=limit, measured=True)
        for found in select_each(db, page.ids[len(damaged) :]):
            if isinstance(found, Version):
                notes = tuple(f"{one.reference} would be the best, but can't be read: {one.problem}" for one in damaged)
                return Choice(found, metric, found.metrics["test"][metric], page.total, compatible, notes[:_TOLD])
            damaged.append(found)
    if damaged:
        demand_readable(damaged[0])
    return None


def _better(one: Choice, other: Choice) -> bool:
    return one.value < other.value if lower_is_better(one.metric) else one.value > other.value


def _with_fingerprint(fingerprints: Sequence[str]) -> Condition:
    marks = ", ".join("?" * len(fingerprints))
    source = f"SELECT id FROM versions WHERE base_fingerprint IN ({marks})"
    return Condition(source, f"+v.base_fingerprint IN ({marks})", tuple(fingerprints))


def _without_fingerprint(base: str) -> Condition:
    source = "SELECT id FROM versions WHERE base_fingerprint IS NULL AND base_id = ?"
    return Condition(source, "+v.base_fingerprint IS NULL AND +v.base_id = ?", (base,))


def _notes_on(base: str, fingerprints: Sequence[str]) -> tuple[str, ...]:
    if len(fingerprints) < 2:
        return ()
    told = ", ".join(fingerprint[:12] for fingerprint in fingerprints)
    return (f"{base} stands for {len(fingerprints)} different bases here ({told}); --base takes a fingerprint too",)


def _why_not(
    db: Database, conditions: Sequence[Condition], without: Sequence[Condition] = (), base: str | None = None
) -> str:
    """Why nothing fits: the metrics that there are, or the bases."""
    page = find_page(db, conditions, COLUMNS["name"], limit=_LOOKED_AT)
    if page.total:
        names = _of(db, page.ids, _METRICS, None)
        there = f"has it; they have {', '.join(names)}" if names else "has metrics"
        return f"none of {page.total} fitting versions {there}"
    if base is None:
        return "no version fits"
    page = find_page(db, without, COLUMNS["name"], limit=_LOOKED_AT)
    bases = _of(db, page.ids, "SELECT DISTINCT base_id FROM versions WHERE base_id IS NOT NULL AND id IN", _TOLD)
    if not bases:
        return "no version fits"
    return f"no version fits {base}; on other bases there are {page.total}, such as on {', '.join(bases)}"


def _of(db: Database, ids: Sequence[int], query: str, limit: int | None) -> list[str]:
    rows = db.execute(f"{query} ({', '.join(map(str, ids))}) ORDER BY 1 LIMIT ?", [-1 if limit is None else limit])
    return [str(text) for (text,) in rows]
