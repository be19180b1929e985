"""Finding versions: which fit, in which order, and how many there are.

Only rows that are shown become :class:`~lorary.hub.values.Version` values; filtering, sorting and counting stay in the
database. How a query is carried out is decided here and not by SQLite, which keeps no statistics: a hundred thousand
versions are to be searched in milliseconds, whatever the conditions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import UnknownReferenceError, UsageError
from lorary.hub.finding.search import NUMBERS, Condition, Filter, check_metric, check_unmade, conditions_for
from lorary.hub.metrics import lower_is_better
from lorary.hub.tables.database import reading
from lorary.hub.tables.lookup import locate_id
from lorary.hub.tables.readable import as_bytes, demand_readable, select_each, texts
from lorary.hub.values import Unreadable, Version

if TYPE_CHECKING:
    from sqlite_utils import Database

_FEW = 2_000  # versions that are sorted at once; of more, the order's index is followed until enough are found

_AT_ONCE = 1_000  # versions read together

FINITE = "value BETWEEN -1.7976931348623157e308 AND 1.7976931348623157e308"
"""Is a metric's value a number? To SQLite texts and blobs are above all of them."""

_BY_ADAPTER = "adapters a CROSS JOIN versions v ON v.adapter_id = a.id"
_BY_VERSION = "versions v CROSS JOIN adapters a ON a.id = v.adapter_id"


@dataclass(frozen=True)
class Page:
    """Row ids in order, as many as were asked for, and how many fit in all."""

    ids: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class FoundVersions:
    """Versions in order, as many as were asked for, and how many fit in all.

    They are read some at a time as one goes through them, each time anew. Between, the registry isn't locked, however
    long that takes; what was removed meanwhile is left out.
    """

    path: Path
    page: Page

    @property
    def total(self) -> int:
        """How many fit, also beyond the limit."""
        return self.page.total

    def metrics(self) -> set[str]:
        """The names of the metrics on held-out rows that any of them has."""
        names: set[str] = set()
        for some in _portions(self.page.ids):
            among = f"split = 'test' AND version_id IN ({', '.join(map(str, some))})"
            with reading(self.path) as db:
                found = db.execute(f"SELECT DISTINCT name FROM metrics WHERE {among}") if db else ()
                names.update(str(name) for (name,) in found)
        return names

    def __len__(self) -> int:
        return len(self.page.ids)

    def __iter__(self) -> Iterator[Version]:
        return map(demand_readable, self.each())

    def each(self) -> Iterator[Version | Unreadable]:
        """The same, with what is known of a version whose row is damaged in its place instead of an error."""
        for some in _portions(self.page.ids):
            with reading(self.path) as db:
                versions = list(select_each(db, some)) if db else []
            yield from versions


@dataclass(frozen=True)
class Order:
    """What versions are sorted by: the tables in an order that follows an index, and the terms of ORDER BY.

    ``metric`` is set where it is one; versions that don't have it come last.
    """

    tables: str
    terms: tuple[tuple[str, str], ...]
    metric: str | None = None

    def sql(self, reverse: bool) -> str:
        """The terms; ``reverse`` turns all of them round, and what has no value is last either way."""
        other = {"ASC": "DESC", "DESC": "ASC"}
        terms = [f"{term} {other[way] if reverse else way}" for term, way in self.terms]
        return ", ".join([f"{terms[0]} NULLS LAST", *terms[1:]])


_NAME = (("a.name", "ASC"), ("v.number", "ASC"))

COLUMNS: Mapping[str, Order] = {
    "name": Order(_BY_ADAPTER, _NAME),
    "domain": Order(_BY_ADAPTER, (("a.domain", "ASC"), ("a.task", "ASC"), *_NAME)),
    "task": Order(_BY_ADAPTER, (("a.task", "ASC"), ("a.domain", "ASC"), *_NAME)),
    "created": Order(_BY_VERSION, (("v.created_at", "DESC"), ("v.id", "DESC"))),
    **{
        column: Order(_BY_VERSION, ((f"v.{sql}", "ASC"), ("v.id", "ASC")))
        for column, sql in (("base", "base_id"), ("method", "method"), ("strategy", "strategy"))
    },
    **{column: Order(_BY_VERSION, ((sql, "ASC"), ("v.id", "ASC"))) for column, sql in NUMBERS.items()},
}
"""What versions can be sorted by besides a metric; the newest first by ``created``."""


def find_versions(
    db: Database | None, wanted: Filter, path: Path, *, sort: str, reverse: bool, limit: int | None
) -> Page:
    """The versions that are wanted; ``db`` is None where no registry is at ``path`` yet.

    Raises:
        UsageError: a condition, an order or a limit that can't be one.
        UnknownReferenceError: see :func:`~lorary.hub.finding.search.conditions_for`.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit}; expected at least 1, or none for all")
    if db is None:
        check_unmade(wanted, path)
        return Page((), 0)
    conditions = conditions_for(db, wanted, path)
    return find_page(db, conditions, order_by(db, sort), reverse=reverse, limit=limit)


def select_in_order(db: Database, ids: Sequence[int]) -> Iterator[Version]:
    """The versions of these row ids, without those that aren't there any more.

    Raises:
        RegistryError: the row of one of them is damaged.
    """
    for some in _portions(ids):
        yield from map(demand_readable, select_each(db, some))


def _portions(ids: Sequence[int]) -> Iterator[Sequence[int]]:
    return (ids[start : start + _AT_ONCE] for start in range(0, len(ids), _AT_ONCE))


def relatives(db: Database, reference: str, path: Path) -> list[Version | Unreadable]:
    """A version, all that it was trained from and all that was trained from it, by name and number.

    Those whose rows are damaged come last.

    Raises:
        UnknownReferenceError: there is no such version.
    """
    lines = (
        f"WITH RECURSIVE line (id) AS (SELECT ? UNION SELECT p.{there} FROM line JOIN parents p ON p.{here} = line.id "
        f"WHERE typeof(p.{there}) = 'integer') SELECT id FROM line"
        for here, there in (("version_id", "parent_id"), ("parent_id", "version_id"))
    )
    row_id = locate_id(db, reference, path)
    ids = {int(found) for line in lines for (found,) in db.execute(line, [row_id])}
    found = list(select_each(db, list(ids)))
    versions = [one for one in found if isinstance(one, Version)]
    damaged = [one for one in found if isinstance(one, Unreadable)]
    return [*sorted(versions, key=lambda version: (version.name, version.number)), *damaged]


def order_by(db: Database, name: str) -> Order:
    """The order for a column's or a metric's name: the best value first, the newer version of equals.

    Raises:
        UnknownReferenceError: it is neither, and other metrics are there.
        UsageError: it is neither, and no version has any metric.
    """
    if known := COLUMNS.get(name):
        return known
    try:
        check_metric(db, name)
    except UnknownReferenceError as error:
        raise UsageError(f"{error}; the columns are {', '.join(COLUMNS)}") from error
    return metric_order(name)


def metric_order(name: str) -> Order:
    """The best value of a metric first, and the newer version of equals."""
    way = "ASC" if lower_is_better(name) else "DESC"
    return Order("", (("m.value", way), ("v.id", "DESC")), metric=name)


def find_page(
    db: Database,
    conditions: Sequence[Condition],
    order: Order,
    *,
    reverse: bool = False,
    limit: int | None = None,
    measured: bool = False,
) -> Page:
    """The first ``limit`` of the versions that fulfil all conditions; ``measured``: only those that have the metric."""
    if order.metric is not None and measured:
        conditions = [*conditions, _having(order.metric)]
    ranked, total = _narrowed(db, conditions)
    if total == 0:
        return Page((), 0)
    if limit is None or total <= _FEW:
        ids = _sorted(db, ranked[0] if ranked else None, order, reverse)
        return Page(tuple(ids[:limit]), total)
    ids = _followed(db, ranked, order, reverse, limit)
    if order.metric is not None and len(ids) < limit:
        rest = [*ranked, _lacking(order.metric)]
        ids += _followed(db, rest, COLUMNS["name"], False, limit - len(ids))
    return Page(tuple(ids), total)


def as_one(db: Database, conditions: Sequence[Condition]) -> list[Condition]:
    """The conditions as one, or none: to be asked of several times, until the next search on ``db``."""
    return _narrowed(db, conditions)[0][:1]


def tasks_of(db: Database, conditions: Sequence[Condition]) -> list[str]:
    """The tasks of all versions that fulfil the conditions."""
    ranked, total = _narrowed(db, conditions)
    parameters = _parameters(ranked[:1])
    if ranked and total <= _FEW:
        query = f"SELECT DISTINCT {as_bytes('a.task')} FROM {_among(ranked[0])}"
    else:
        # Of so many the first of each task is found soon.
        one = f"SELECT 1 FROM {_BY_ADAPTER} WHERE a.task = t.task AND {_all([one.check for one in ranked[:1]])}"
        query = f"SELECT {as_bytes('t.task')} FROM (SELECT DISTINCT task FROM adapters) t WHERE EXISTS ({one})"
    return [task for task, *_ in texts(db.execute(f"{query} ORDER BY 1", parameters))]


def measured_among(db: Database, conditions: Sequence[Condition], names: Iterable[str]) -> Iterator[str]:
    """Those of the metrics that any version has which fulfils the conditions, in their order, each when asked for."""
    ranked, total = _narrowed(db, conditions)
    for name in names if total else ():
        having = _having(name)
        tables, parameters = "versions v", list(having.parameters)
        if ranked:
            tables, parameters = f"({ranked[0].source}) v", [*ranked[0].parameters, *parameters]
        if db.execute(f"SELECT 1 FROM {tables} WHERE {having.check} LIMIT 1", parameters).fetchone():
            yield name


def _narrowed(db: Database, conditions: Sequence[Condition]) -> tuple[list[Condition], int]:
    """The conditions from the rarest one on, several as one that comes first, and how many versions fulfil them all."""
    # From the rarest one on, each further one is a look at single rows.
    counted = sorted(((_count(db, condition), condition) for condition in conditions), key=lambda pair: pair[0])
    ranked = [condition for _, condition in counted]
    total = counted[0][0] if counted else int(db.execute("SELECT count(*) FROM versions").fetchone()[0])
    if total == 0 or len(ranked) < 2:
        return ranked, total
    fitting = _fulfil(db, ranked, total)
    # A cell is kept beside, since an order's index may be the cell's.
    return [fitting, *(condition for condition in ranked if condition.cell)], _count(db, fitting)


def _having(metric: str) -> Condition:
    measured = f"split = 'test' AND name = ? AND {FINITE}"
    check = f"EXISTS (SELECT 1 FROM metrics INDEXED BY metrics_version WHERE version_id = v.id AND {measured})"
    return Condition(f"SELECT version_id AS id FROM metrics WHERE {measured}", check, (metric,), by_id=True)


def _lacking(metric: str) -> Condition:
    has = _having(metric)
    return Condition(f"SELECT id FROM versions EXCEPT {has.source}", f"NOT {has.check}", has.parameters, by_id=True)


def _fulfil(db: Database, ranked: Sequence[Condition], smallest: int) -> Condition:
    """All conditions as one, whose ids are kept in a table; ``smallest`` versions fulfil the rarest of them."""
    first, *others = ranked
    tables = f"({first.source}) v"
    checks = [other.check if other.by_id else f"v.id IN ({other.source})" for other in others]
    if smallest <= _FEW:
        # So few rows are read faster than what fulfils the other conditions is collected.
        tables = f"({first.source}) c CROSS JOIN versions v ON v.id = c.id CROSS JOIN adapters a ON a.id = v.adapter_id"
        checks = [other.check for other in others]
    db.execute("DROP TABLE IF EXISTS temp.fitting")
    db.execute("CREATE TEMP TABLE fitting (id INTEGER PRIMARY KEY)")
    db.execute(f"INSERT INTO temp.fitting SELECT v.id FROM {tables} WHERE {_all(checks)}", _parameters(ranked))
    check = "EXISTS (SELECT 1 FROM temp.fitting f WHERE f.id = v.id)"
    return Condition("SELECT id FROM temp.fitting", check, (), by_id=True)


def _count(db: Database, condition: Condition) -> int:
    return int(db.execute(f"SELECT count(*) FROM ({condition.source})", condition.parameters).fetchone()[0])


def _sorted(db: Database, matching: Condition | None, order: Order, reverse: bool) -> list[int]:
    """All that fit, sorted at once."""
    tables, parameters, terms = _BY_ADAPTER, [], order.sql(reverse)
    if matching:
        tables = _among(matching)
        parameters = list(matching.parameters)
    if order.metric is not None:
        tables += f" LEFT JOIN metrics m ON m.version_id = v.id AND m.split = 'test' AND m.name = ? AND m.{FINITE}"
        parameters.append(order.metric)
        value, rest = terms.split(", ", 1)
        # What lacks the metric comes by its name, as where the index is followed.
        terms = (
            f"{value}, CASE WHEN m.value IS NULL THEN a.name END, CASE WHEN m.value IS NULL THEN v.number END, {rest}"
        )
    return [int(row_id) for (row_id,) in db.execute(f"SELECT v.id FROM {tables} ORDER BY {terms}", parameters)]


def _among(matching: Condition) -> str:
    return f"({matching.source}) c CROSS JOIN {_BY_VERSION.replace(' CROSS', ' ON v.id = c.id CROSS')}"


def _followed(db: Database, ranked: Sequence[Condition], order: Order, reverse: bool, limit: int) -> list[int]:
    """The first that fit, along the order's index."""
    tables, checks = order.tables, list(ranked)
    parameters: list[object] = []
    where = "1"
    if order.metric is not None:
        tables = "metrics m CROSS JOIN versions v ON v.id = m.version_id CROSS JOIN adapters a ON a.id = v.adapter_id"
        where, parameters = f"m.split = 'test' AND m.name = ? AND m.{FINITE}", [order.metric]
        # The metrics' rows know their cell: no other row is read for it.
        for condition in [condition for condition in ranked if condition.cell]:
            checks.remove(condition)
            where += f" AND {condition.check.replace('a.', 'm.')}"
            parameters += condition.parameters
    where = _all([where, *(one.check for one in checks)])
    query = f"SELECT v.id FROM {tables} WHERE {where} ORDER BY {order.sql(reverse)} LIMIT ?"
    return [int(row_id) for (row_id,) in db.execute(query, [*parameters, *_parameters(checks), limit])]


def _all(checks: Sequence[str]) -> str:
    return " AND ".join(f"({check})" for check in checks) or "1"


def _parameters(conditions: Sequence[Condition]) -> list[object]:
    return [parameter for condition in conditions for parameter in condition.parameters]
