"""The labels of regression: a number for each row."""

from __future__ import annotations

from collections.abc import Mapping

from lorary.hub.errors import DataError
from lorary.training.data.examples import Example


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
