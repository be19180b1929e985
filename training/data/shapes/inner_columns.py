"""Columns within columns: ``translation.en`` is what the column ``translation`` has under ``en``.

The Hub's translation datasets have their texts so, a column for each pair with a text for each language in it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from lorary.training.data.files.source import Row, Source
from lorary.training.data.shapes.messages import is_message


def with_inner(source: Source, columns: Iterable[str]) -> Source:
    """A source whose rows have these columns beside the others, where a row has what the dots lead to."""
    inner = [column for column in columns if "." in column and not any(column in row.values for row in source.rows)]
    return replace(source, rows=tuple(_with_inner(row, inner) for row in source.rows)) if inner else source


def _with_inner(row: Row, columns: Iterable[str]) -> Row:
    found = dict(row.values)
    for column in columns:
        value: Any = row.values
        for name in column.split("."):
            if not isinstance(value, Mapping) or name not in value:
                break
            value = value[name]
        else:
            found[column] = value
    return replace(row, values=found)


def inner_hint(source: Source) -> list[str]:
    """A line for each column whose values have columns of their own, as the first row has them."""
    return [
        f"{column} has columns of its own; name them as {', '.join(f'{column}.{name}' for name in value)}"
        for column, value in source.rows[0].values.items()
        if isinstance(value, Mapping) and not is_message(value)
    ]
