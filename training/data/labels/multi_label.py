"""Rows with any number of labels, in the four ways that files hold them, as one: a list of names.

A file has a list of names (or of label numbers) in one column, the same as a text, a list of 0 and 1 with a place for
each label, or a column of 0 and 1 for each label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.data.files.source import Row, Source, bad_rows
from lorary.training.data.shapes.written import written_list
from lorary.training.recipe.raw import nearest, shown

_YES_OR_NO: Mapping[Any, bool] = {
    0: False, 1: True, "0": False, "1": True, "0.0": False, "1.0": True, "false": False, "true": True,
}  # fmt: skip


def join_columns(source: Source, columns: Sequence[str], into: str) -> Source:
    """A source whose rows name in the column ``into`` those of ``columns`` that hold a 1.

    Raises:
        DataError: a column that no row has, and every value that is neither 0 nor 1, by its row.
    """
    seen = {column for row in source.rows for column in row.values}
    absent = [
        f"{source.shown}: no column {column!r} (of data.label_columns); there are {', '.join(sorted(seen))}"
        + nearest(column, seen)
        for column in columns
        if column not in seen
    ]
    if absent:
        raise DataError("columns", absent)
    problems: list[str] = []
    rows = []
    for row in source.rows:
        marks = {column: _yes(row.values.get(column)) for column in columns}
        problems += [
            f"{row.place}, {column}: expected 0 or 1, found {shown(row.values.get(column))}"
            for column, mark in marks.items()
            if mark is None
        ]
        rows.append(Row({**row.values, into: [column for column in columns if marks[column]]}, row.place))
    if problems:
        raise bad_rows(source, problems)
    return replace(source, rows=tuple(rows))


def split_texts(source: Source, column: str, separator: str | None) -> Source:
    """A source whose texts in a column are lists instead: those that data frames write into CSV files (``['a', 'b']``),
    and what stands between the separators, without blanks.

    An empty text between separators holds no label, and a number is one.
    """

    def split(value: Any) -> Any:
        if isinstance(value, str) and (found := written_list(value)) is not None:
            return found
        if separator is None or isinstance(value, bool) or not isinstance(value, (str, int)):
            return value
        return [part.strip() for part in value.split(separator) if part.strip()] if isinstance(value, str) else [value]

    rows = [
        Row({**row.values, column: split(row.values[column])}, row.place) if column in row.values else row
        for row in source.rows
    ]
    return replace(source, rows=tuple(rows))


def as_lists(source: Source, column: str) -> Source:
    """A source with a list of one in a column where its lines have one label, since others have several."""
    rows = [
        Row({**row.values, column: [value]}, row.place) if isinstance(value := row.values.get(column), str) else row
        for row in source.rows
    ]
    return replace(source, rows=tuple(rows))


def is_multi_hot(source: Source, column: str) -> bool:
    """Do the lists of a column hold 0 or 1 for each label, rather than name those that a row has?

    Numbers of labels are whole, and none is there twice.
    """
    lists = [value for row in source.rows if isinstance(value := row.values.get(column), list)]
    if not lists or any(_yes(item) is None or isinstance(item, str) for value in lists for item in value):
        return False
    return any(type(item) is not int for value in lists for item in value) or any(
        len(set(value)) < len(value) for value in lists
    )


def name_places(source: Source, column: str, labels: Sequence[str] | None) -> Source:
    """A source whose lists of 0 and 1 are lists of names instead; without ``labels``, of the places' numbers.

    Raises:
        DataError: a list of another length than the labels (or the first list), by its row.
    """
    lists = [value for row in source.rows if isinstance(value := row.values.get(column), list)]
    count = len(labels) if labels is not None else len(lists[0]) if lists else 0
    names = labels or [str(place) for place in range(count)]
    problems: list[str] = []
    rows = []
    for row in source.rows:
        value = row.values.get(column)
        if isinstance(value, list):
            if len(value) != count or any(_yes(item) is None for item in value):
                problems.append(
                    f"{row.place}, {column}: expected a list of 0 and 1 for {count} labels, found {shown(value)}"
                )
            value = [name for name, item in zip(names, value, strict=False) if _yes(item)]
        rows.append(Row({**row.values, column: value}, row.place))
    if problems:
        raise bad_rows(source, problems)
    return replace(source, rows=tuple(rows))


def _yes(value: Any) -> bool | None:
    """Is it a yes? None where it is neither a yes nor a no."""
    key = value.strip().lower() if isinstance(value, str) else value
    return _YES_OR_NO.get(key) if isinstance(key, (str, int, float)) else None
