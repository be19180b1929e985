"""Checking rows: the columns are there and every value is what its role asks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.data.examples import Example
from lorary.training.data.files.source import SHOWN_PROBLEMS, Row, Source, bad_rows
from lorary.training.data.incomplete import HINT, lacks_value
from lorary.training.data.roles import CHECKS, OPTIONAL_ROLES, READERS, half_character, row_problem
from lorary.training.data.shapes.inner_columns import inner_hint
from lorary.training.data.shapes.known import hint
from lorary.training.recipe.data_files import kind_of
from lorary.training.recipe.raw import nearest

Checks = Mapping[str, Callable[[Any], str | None]]


def check_rows(source: Source, columns: Mapping[str, str], checks: Checks = CHECKS) -> tuple[Example, ...]:
    """The rows of a source by role; ``checks`` say what is wrong with a value in each of them.

    Raises:
        DataError: a row that can't be read, a column that no row has, and every bad value with its file and row.
    """
    seen = {column for row in source.rows for column in row.values}
    known = hint(seen, columns)  # says more than the nearest name of each column
    absent = [
        f"{source.shown}: no column {column!r} (for {role}); there are {', '.join(sorted(seen))}"
        + ("" if known else nearest(column, seen) or f"; name it with data.columns.{role}")
        for role, column in columns.items()
        if column not in seen
    ]
    if absent:
        unread = [f"{source.shown}, {problem}" for problem in source.unread[:SHOWN_PROBLEMS]]
        more = known or inner_hint(source)
        if not seen & set(columns.values()) and kind_of(Path(source.shown)) in (".csv", ".tsv"):
            more = [*more, "if the first row holds no names, name the columns with data.header, in order"]
            if "tokens" in columns:
                more.append("if a blank line ends each sentence, name the file .conll, where no row holds names")
        raise DataError("columns", unread + absent + more)
    examples = tuple(Example(_values(row, columns), row.place) for row in source.rows)
    problems = [
        problem
        for row, example in zip(source.rows, examples, strict=True)
        for problem in _row_problems(row, example, columns, checks)
    ]
    if problems or source.unread:
        lacking = sum(lacks_value(row, columns) for row in source.rows)
        raise bad_rows(source, problems, [HINT] if 0 < lacking < len(source.rows) else ())
    return examples


def _values(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    return {
        role: READERS[role](row.values[column]) if role in READERS else row.values[column]
        for role, column in columns.items()
        if column in row.values
    }


def _row_problems(row: Row, example: Example, columns: Mapping[str, str], checks: Checks) -> Iterable[str]:
    found = False
    for role, column in columns.items():
        if column not in row.values and role in OPTIONAL_ROLES:
            continue
        if column not in row.values:
            problem: str | None = f"missing; the row has {', '.join(sorted(row.values)) or 'no columns'}"
        else:
            problem = checks[role](example.values[role]) or half_character(example.values[role])
        if problem:
            found = True
            yield f"{row.place}, {column}: {problem}"
    if not found:
        problem = row_problem(example.values)
        if problem:
            yield f"{row.place}: {problem}"
