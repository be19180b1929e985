"""What `find` looks for, as conditions on the rows."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import UnknownReferenceError, UsageError
from lorary.hub.finding.fulltext import match_expression
from lorary.hub.provenance.private import own_folder
from lorary.hub.reference import check_name, normalise_domain
from lorary.hub.tables.catalogue import check_task
from lorary.hub.tables.lookup import locate_id

if TYPE_CHECKING:
    from sqlite_utils import Database

NUMBERS = {"version": "v.number", "rank": "v.rank", "parameters": "v.parameters", "size": "v.size_bytes"}
"""Columns that can be compared and sorted by like metrics, by their names for people."""

_COMPARISON = re.compile(r"\s*([^\s<>=!]+)\s*(<=|>=|==|!=|=|<|>)\s*(\S+)\s*")


@dataclass(frozen=True)
class Condition:
    """A condition on versions in two forms that take the same parameters.

    ``source`` is a SELECT of the ids of all that fulfil it, out of an index alone; ``check`` tests one version, as SQL
    on ``a`` (adapters) and ``v`` (versions), with a ``+`` where SQLite is not to look for an index. ``by_id`` is True
    where the check needs nothing but ``v.id``. ``cell`` has the domain and the task, where these are the condition.
    """

    source: str
    check: str
    parameters: tuple[object, ...]
    by_id: bool = False
    cell: tuple[str | None, str | None] | None = None


@dataclass(frozen=True)
class Filter:
    """What versions to find; None stands for any.

    ``base`` is an id or a fingerprint; an id also finds what was trained on the same base under another id. ``text`` is
    words, each of which begins a word in the name, domain, task, base, method, strategy, tags, aliases or labels.
    ``where`` has comparisons such as ``f1>=0.9``, of metrics on held-out rows or of :data:`NUMBERS`. ``ancestor`` is a
    reference; what descends from it is found.
    """

    domain: str | None = None
    task: str | None = None
    base: str | None = None
    method: str | None = None
    strategy: str | None = None
    tag: str | None = None
    alias: str | None = None
    text: str | None = None
    where: tuple[str, ...] = ()
    ancestor: str | None = None


@dataclass(frozen=True)
class Comparison:
    """One comparison of a metric or a column with a number."""

    name: str
    operator: str
    number: float


def parse_comparison(text: str) -> Comparison:
    """Read ``f1>=0.9``.

    Raises:
        UsageError: it isn't a name, one of ``< <= > >= = !=`` and a number.
    """
    found = _COMPARISON.fullmatch(text)
    try:
        number = float(found[3]) if found else math.nan
    except ValueError:
        number = math.nan
    if not found or math.isnan(number):
        raise UsageError(f"{text!r} isn't a comparison; expected a metric, < <= > >= = or != and a number: f1>=0.9")
    return Comparison(found[1], found[2], number)


def conditions_for(db: Database, wanted: Filter, path: Path) -> list[Condition]:
    """The conditions for what is wanted.

    Raises:
        UsageError: a domain, task, method, strategy, tag, alias or comparison that can't be one.
        UnknownReferenceError: the ancestor isn't there, or nothing has a metric that is compared.
    """
    conditions: list[Condition] = []
    if wanted.domain is not None or wanted.task is not None:
        conditions.append(_in_cell(wanted.domain, wanted.task))
    for column, value, such in (("method", wanted.method, "lora"), ("strategy", wanted.strategy, "fine-tune")):
        if value is not None:
            if not value.strip():
                raise UsageError(f"{column} {value!r}: expected a word such as {such!r}")
            source = f"SELECT id FROM versions WHERE {column} = ?"
            conditions.append(Condition(source, f"+v.{column} = ?", (value.lower(),)))
    if wanted.tag is not None:
        conditions.append(_listed("tags", "tag", normalise_tags([wanted.tag])))
    if wanted.alias is not None:
        conditions.append(_listed("aliases", "name", (check_name(wanted.alias, "alias"),)))
    if wanted.base is not None:
        conditions.append(_on_base(db, wanted.base))
    if wanted.ancestor is not None:
        ancestor = locate_id(db, wanted.ancestor, path)
        conditions.append(Condition(_DESCENDANTS, f"v.id IN ({_DESCENDANTS})", (ancestor, ancestor), by_id=True))
    conditions += [_compared(db, parse_comparison(text)) for text in wanted.where]
    if wanted.text is not None and wanted.text.strip():
        conditions.append(_mentioning(db, wanted.text))
    return conditions


def check_unmade(wanted: Filter, path: Path) -> None:
    """Nothing, where what is wanted could be found in a registry that isn't made yet; raises as `conditions_for`."""
    from lorary.hub.tables.database import nothing

    if wanted.ancestor is not None:
        locate_id(None, wanted.ancestor, path)
    with nothing() as db:
        conditions_for(db, replace(wanted, ancestor=None), path)


_DESCENDANTS = (
    "WITH RECURSIVE line (id) AS (SELECT version_id FROM parents WHERE parent_id = ? UNION "
    "SELECT p.version_id FROM line JOIN parents p ON p.parent_id = line.id) SELECT id FROM line WHERE id != ?"
)


def _in_cell(domain: str | None, task: str | None) -> Condition:
    cell = (None if domain is None else normalise_domain(domain), None if task is None else check_task(task))
    given = [(column, value) for column, value in zip(("domain", "task"), cell, strict=True) if value is not None]
    check = " AND ".join(f"a.{column} = ?" for column, _ in given)
    source = f"SELECT v.id FROM adapters a CROSS JOIN versions v ON v.adapter_id = a.id WHERE {check}"
    return Condition(source, check, tuple(value for _, value in given), cell=cell)


def _listed(table: str, column: str, parameters: tuple[str, ...]) -> Condition:
    check = f"EXISTS (SELECT 1 FROM {table} o WHERE o.version_id = v.id AND o.{column} = ?)"
    return Condition(f"SELECT version_id AS id FROM {table} WHERE {column} = ?", check, parameters, by_id=True)


def _mentioning(db: Database, text: str) -> Condition:
    # FTS5 can't tell quickly whether it matches one row: its answer is kept, and looked up in from here on.
    db.execute("DROP TABLE IF EXISTS temp.matches")
    db.execute("CREATE TEMP TABLE matches (id INTEGER PRIMARY KEY)")
    if expression := match_expression(db, text):
        db.execute("INSERT INTO temp.matches SELECT rowid FROM search WHERE search MATCH ?", [expression])
    check = "EXISTS (SELECT 1 FROM temp.matches t WHERE t.id = v.id)"
    return Condition("SELECT id FROM temp.matches", check, (), by_id=True)


def known_fingerprints(db: Database, base: str) -> list[str]:
    """The fingerprints that an id stands for in this catalogue; that itself when it is one."""
    # A folder stands there under its full path.
    ids = [base, own_folder(base) or base]
    rows = db.execute("SELECT DISTINCT fingerprint FROM bases WHERE id IN (?, ?) ORDER BY fingerprint", ids)
    found = [str(fingerprint) for (fingerprint,) in rows]
    return found or ([base] if re.fullmatch("[0-9a-f]{64}", base) else [])


def _on_base(db: Database, base: str) -> Condition:
    fingerprints = known_fingerprints(db, base)
    # The second part finds what was trained on the same base under another id.
    others = f"base_fingerprint IN ({', '.join('?' * len(fingerprints))}) AND base_id IS NOT ?"
    source = f"SELECT id FROM versions WHERE base_id = ? UNION ALL SELECT id FROM versions WHERE {others}"
    check = f"+v.base_id = ? OR +v.{others.replace('base_id IS', '+v.base_id IS')}"
    return Condition(source, check, (base, *fingerprints, base))


def _compared(db: Database, comparison: Comparison) -> Condition:
    operator = "=" if comparison.operator == "==" else comparison.operator
    if column := NUMBERS.get(comparison.name):
        source = f"SELECT id FROM versions v WHERE {column} {operator} ?"
        return Condition(source, f"+{column} {operator} ?", (comparison.number,))
    check_metric(db, comparison.name)
    measured = f"split = 'test' AND name = ? AND value {operator} ?"
    return Condition(
        f"SELECT version_id AS id FROM metrics WHERE {measured}",
        f"EXISTS (SELECT 1 FROM metrics INDEXED BY metrics_version WHERE version_id = v.id AND {measured})",
        (comparison.name, comparison.number),
        by_id=True,
    )


def check_metric(db: Database, name: str) -> None:
    """Nothing, where some version has the metric on held-out rows or none has any at all.

    Raises:
        UnknownReferenceError: others have metrics, none has this one; the message says which there are.
    """
    names = metric_names(db)
    if names and name not in names:
        near = get_close_matches(name, names, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names)}"
        raise UnknownReferenceError(f"no version has a metric {name!r} on held-out rows; {hint}")


def metric_names(db: Database) -> list[str]:
    """The metrics that versions have on held-out rows."""
    # Steps from one name to the next in the index instead of reading all rows.
    rows = db.execute(
        "WITH RECURSIVE one (name) AS (SELECT min(name) FROM metrics WHERE split = 'test' UNION ALL SELECT "
        "(SELECT min(name) FROM metrics WHERE split = 'test' AND name > one.name) FROM one WHERE one.name IS NOT NULL) "
        "SELECT name FROM one WHERE name IS NOT NULL"
    )
    return [str(name) for (name,) in rows]


def normalise_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags in their one spelling, each once.

    Raises:
        UsageError: a single text in place of several, or a tag of which nothing is left.
    """
    if isinstance(tags, str):
        raise UsageError(f"tags: expected several words, found the one text {tags!r}")
    return tuple(dict.fromkeys(normalise_domain(tag, "tag") for tag in tags))
