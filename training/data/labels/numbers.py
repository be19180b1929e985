"""Labels that are numbers: those of regression, and classes that a CSV file has as 1.0."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace

from lorary.hub.errors import DataError
from lorary.training.data.examples import Example
from lorary.training.data.files.source import Row, Source

_WHOLE = re.compile(r"(-?\d+)(\.0*)?")


def find_numbers(
    parts: dict[str, tuple[Example, ...]], columns: Mapping[str, str], source: str, learned: bool = True
) -> tuple[str]:
    """Make floats of the labels in ``parts``; the one name of what is predicted is that of their column.

    ``source`` is what messages call the training rows. ``learned``: something has to be told apart in them.

    Raises:
        DataError: every training row has the same number.
    """
    for part, examples in parts.items():
        parts[part] = tuple(
            Example({**example.values, "label": float(example.values["label"])}, example.place) for example in examples
        )
    found = {example.values["label"] for example in parts["train"]}
    if learned and len(found) < 2:
        raise DataError(
            "labels", [f"{source}: every training row has the number {found.pop():g}; expected different ones"]
        )
    return (columns["label"],)


def write_whole(given: Mapping[str, Source], column: str) -> dict[str, Source]:
    """The sources with ``1`` for a label ``1.0`` where all labels of the training rows are whole numbers.

    Data frames write classes so where a column has gaps; another file may have the same classes as 1.
    """
    texts = (row.values.get(column) for row in given["train"].rows)
    if not all(isinstance(text, str) and _WHOLE.fullmatch(text.strip()) for text in texts if text != ""):
        return dict(given)
    return {
        part: replace(source, rows=tuple(_with_whole(row, column) for row in source.rows))
        for part, source in given.items()
    }


def _with_whole(row: Row, column: str) -> Row:
    text = row.values.get(column)
    found = _WHOLE.fullmatch(text.strip()) if isinstance(text, str) else None
    return row if found is None else replace(row, values={**row.values, column: found[1]})
