"""JSON objects that hold a table's columns rather than its rows, as data frames and datasets write them.

pandas' ``DataFrame.to_json`` has a column with its values by the index (``columns``, the default), a row by its index
(``index``), or names of columns beside lists of values (``split``); ``to_dict("list")``, and ``datasets``' own, have a
column with a list of its values.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lorary.training.data.files.contents import twice
from lorary.training.recipe.raw import shown

_PLACE = re.compile(r"-?\d+")
_HOLDS_ROWS = re.compile(r"data|rows|examples|(.*_)?(train|test|dev|val|valid|validation)", re.IGNORECASE)


def table_rows(value: Any, split: str) -> list[dict[str, Any]] | None:
    """The rows of such an object, or of one that ``split`` names in it; None of any other value.

    Raises:
        ValueError: its columns don't fit each other; the message says how.
    """
    if not isinstance(value, Mapping):
        return None
    for table in (value, value.get(split)):
        if isinstance(table, Mapping) and table:
            rows = _of_frame(table) if is_frame(table) else _of_lists(table)
            if rows is not None:
                return rows
    return None


def is_frame(value: Any) -> bool:
    """Is this what a data frame is written as, and no row could be? An index is of numbers, and names of columns
    aren't."""
    if not isinstance(value, Mapping) or not value:
        return False
    if {"columns", "data"} <= value.keys() <= {"columns", "index", "data"}:
        lists = all(isinstance(part, list) for part in value.values())
        return lists and all(map(_is_text, value["columns"])) and not _are_rows(value["data"])
    if not all(isinstance(part, Mapping) for part in value.values()) or all(map(_HOLDS_ROWS.fullmatch, value)):
        return False
    outer, inner = _is_index(value), _is_index([key for part in value.values() for key in part])
    return outer != inner


def _is_index(keys: Iterable[str]) -> bool:
    return all(map(_PLACE.fullmatch, keys))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _of_frame(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    if "data" in value and isinstance(value["data"], list):
        return _of_split(value["columns"], value["data"])
    return [dict(row) for row in value.values()] if _is_index(value) else _of_columns(value)


def _of_columns(columns: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    first, index = next(iter(columns.items()))
    for name, values in columns.items():
        for some, others, one, other in ((index, values, name, first), (values, index, first, name)):
            if lacking := next((place for place in some if place not in others), None):
                raise ValueError(f"the column {one!r} has no value for {lacking!r}, which {other!r} has")
    return [{name: values[place] for name, values in columns.items()} for place in index]


def _of_split(names: Sequence[str], data: Sequence[Any]) -> list[dict[str, Any]]:
    if repeated := twice(names):
        raise ValueError(f"there are two columns {repeated}")
    for number, row in enumerate(data, start=1):
        if not isinstance(row, list) or len(row) != len(names):
            found = f"a list of {len(row)}" if isinstance(row, list) else shown(row)
            raise ValueError(f"row {number}: expected a value for each of {len(names)} columns, found {found}")
    return [dict(zip(names, row, strict=True)) for row in data]


def _of_lists(columns: Mapping[str, Any]) -> list[dict[str, Any]] | None:
    """Rows of lists of values. Lists of rows, beside other lists perhaps, are none."""
    lists = [values for values in columns.values() if isinstance(values, list)]
    if len(lists) < len(columns) or all(map(_are_rows, lists)):
        return None
    if any(_HOLDS_ROWS.fullmatch(name) and _may_be_rows(values) for name, values in columns.items()):
        return None
    if len(columns) == 1 and all(isinstance(value, list) and not _are_rows(value) for value in lists[0]):
        return None  # a list of lists under any name, whose columns data.header names
    if len({len(values) for values in lists}) > 1:
        if any(map(_are_rows, lists)):
            return None
        counts = ", ".join(f"{name} {len(values)}" for name, values in columns.items())
        raise ValueError(f"its columns have values of different number: {counts}")
    return [dict(zip(columns, row, strict=True)) for row in zip(*lists, strict=True)]


def _are_rows(values: Sequence[Any]) -> bool:
    return bool(values) and all(isinstance(value, Mapping) for value in values)


def _may_be_rows(values: Sequence[Any]) -> bool:
    return all(isinstance(value, (Mapping, list)) for value in values)
