"""Finding versions: which fit, in which order, and how many there are.

Only rows that are shown become :class:`~lorary.hub.values.Version` values; filtering, sorting and counting stay in the
database. How a query is carried out is decided here and not by SQLite, which keeps no statistics: a hundred thousand
versions are to be searched in milliseconds, whatever the conditions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.catalogue import select
from lorary.hub.errors import UnknownReferenceError, UsageError
from lorary.hub.metrics import lower_is_better
from lorary.hub.search import NUMBERS, Condition, Filter, check_metric, conditions_for
from lorary.hub.values import Version

if TYPE_CHECKING:
    from sqlite_utils import Database

_FEW = 5_000  # versions that are sorted at once; of more, the order's index is followed until enough are found

_AT_ONCE = 1_000  # versions read together

_BY_ADAPTER = "adapters a CROSS JOIN versions v ON v.adapter_id = a.id"
_BY_VERSION = "versions v CROSS JOIN adapters a ON a.id = v.adapter_id"


@dataclass(frozen=True)
class Page:
    """Row ids in order, as many as were asked for, and how many fit in all."""

    ids: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class FoundVersions:
    """Versions in order, as many as were asked for, and how many fit in all."""

    versions: tuple[Version, ...]
    total: int


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
        return ", ".join(f"{term} {other[way] if reverse else way} NULLS LAST" for term, way in self.terms)


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
) -> FoundVersions:
    """The versions that are wanted; ``db`` is None where no registry is at ``path`` yet.

    Raises:
        UsageError: a condition, an order or a limit that can't be one.
        UnknownReferenceError: see :func:`~lorary.hub.search.conditions_for`.
    """
    if limit is not None and limit < 1:
        raise UsageError(f"the limit is {limit}; expected at least 1, or none for all")
    if db is None:
        return FoundVersions((), 0)
    conditions = conditions_for(db, wanted, path)
    page = find_page(db, conditions, order_by(db, sort), reverse=reverse, limit=limit)
    return FoundVersions(tuple(select_in_order(db, page.ids)), page.total)


def select_in_order(db: Database, ids: Sequence[int]) -> Iterator[Version]:
    """The versions of these row ids."""
    for start in range(0, len(ids), _AT_ONCE):
        some = ids[start : start + _AT_ONCE]
        versions = select(db, f"v.id IN ({', '.join(map(str, some))})")
        yield from (versions[row_id] for row_id in some)


def order_by(db: Database, name: str | None) -> Order:
    """The order for a column's or a metric's name: the best value first, the newer version of equals.

    Raises:
        UnknownReferenceError: it is neither, and other metrics are there.
        UsageError: it is neither, and no version has any metric.
    """
    if known := COLUMNS.get(name or "name"):
        return known
    assert name is not None
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
    if order.metric and measured:
        conditions = [*conditions, _having(order.metric)]
    sizes = [_count(db, [condition]) for condition in conditions]
    if 0 in sizes:
        return Page((), 0)
    # From the rarest one on, each further one is a look at single rows.
    ranked = [condition for _, condition in sorted(zip(sizes, conditions, strict=True), key=lambda pair: pair[0])]
    if limit is None or (sizes and min(sizes) <= _FEW):
        ids = _sorted(db, ranked, order, reverse)
        return Page(tuple(ids[:limit]), len(ids))
    total = sizes[0] if len(sizes) == 1 else _count(db, ranked)
    if total <= _FEW:
        return Page(tuple(_sorted(db, ranked, order, reverse)[:limit]), total)
    ids = _followed(db, ranked, order, reverse, limit)
    if order.metric and len(ids) < limit:
        rest = [*ranked, _lacking(order.metric)]
        ids += _followed(db, rest, COLUMNS["name"], False, limit - len(ids))
    return Page(tuple(ids), total)


def _having(metric: str) -> Condition:
    measured = "split = 'test' AND name = ?"
    check = f"EXISTS (SELECT 1 FROM metrics WHERE version_id = v.id AND {measured})"
    return Condition(f"SELECT version_id FROM metrics WHERE {measured}", check, (metric,))


def _lacking(metric: str) -> Condition:
    has = _having(metric)
    return Condition(f"SELECT id FROM versions EXCEPT {has.source}", f"NOT {has.check}", has.parameters)


def _count(db: Database, ranked: Sequence[Condition]) -> int:
    if not ranked:
        query = "SELECT count(*) FROM versions"
    elif len(ranked) == 1:
        query = f"SELECT count(*) FROM ({ranked[0].source})"
    else:
        query = f"SELECT count(*) FROM {_from(ranked)} WHERE {_checks(ranked[1:])}"
    return int(db.execute(query, _parameters(ranked)).fetchone()[0])


def _sorted(db: Database, ranked: Sequence[Condition], order: Order, reverse: bool) -> list[int]:
    """All that fit, from the rarest condition's rows."""
    tables, parameters, terms = _from(ranked), _parameters(ranked[:1]), order.sql(reverse)
    if order.metric:
        value, rest = terms.split(", ", 1)
        # What lacks the metric comes by its name, as where the index is followed.
        terms = (
            f"{value}, CASE WHEN m.value IS NULL THEN a.name END, CASE WHEN m.value IS NULL THEN v.number END, {rest}"
        )
        tables += " LEFT JOIN metrics m ON m.version_id = v.id AND m.split = 'test' AND m.name = ?"
        parameters.append(order.metric)
    query = f"SELECT v.id FROM {tables} WHERE {_checks(ranked[1:])} ORDER BY {terms}"
    return [int(row_id) for (row_id,) in db.execute(query, parameters + _parameters(ranked[1:]))]


def _followed(db: Database, ranked: Sequence[Condition], order: Order, reverse: bool, limit: int) -> list[int]:
    """The first that fit, along the order's index."""
    tables, checks = order.tables, list(ranked)
    parameters: list[object] = []
    where = "1"
    if order.metric:
        tables = "metrics m CROSS JOIN versions v ON v.id = m.version_id CROSS JOIN adapters a ON a.id = v.adapter_id"
        where, parameters = "m.split = 'test' AND m.name = ?", [order.metric]
        # The metrics' rows know their cell: no other row is read for it.
        for condition in [condition for condition in ranked if condition.cell]:
            checks.remove(condition)
            where += f" AND {condition.check.replace('a.', 'm.')}"
            parameters += condition.parameters
    query = f"SELECT v.id FROM {tables} WHERE {where} AND {_checks(checks)} ORDER BY {order.sql(reverse)} LIMIT ?"
    return [int(row_id) for (row_id,) in db.execute(query, [*parameters, *_parameters(checks), limit])]


def _from(ranked: Sequence[Condition]) -> str:
    if not ranked:
        return _BY_ADAPTER
    # An inner SELECT's only column has the name of what it selects, so it is named anew here.
    return (
        f"(SELECT 0 AS id WHERE 0 UNION ALL SELECT * FROM ({ranked[0].source})) c "
        "CROSS JOIN versions v ON v.id = c.id CROSS JOIN adapters a ON a.id = v.adapter_id"
    )


def _checks(conditions: Sequence[Condition]) -> str:
    return " AND ".join(f"({condition.check})" for condition in conditions) or "1"


def _parameters(conditions: Sequence[Condition]) -> list[object]:
    return [parameter for condition in conditions for parameter in condition.parameters]
