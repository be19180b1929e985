"""The names behind label ids, where a dataset's features (the ``datasets`` library's) have them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any


def with_label_names(rows: Iterable[Mapping[str, Any]], features: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Rows by column, with names in place of the ids of ``ClassLabel`` columns, and of lists of them."""
    names = {column: _label_names(feature) for column, feature in features.items()}
    for row in rows:
        yield {column: _named(value, names.get(column)) for column, value in row.items()}


def _label_names(feature: Any) -> list[str] | None:
    """The names behind a column of label ids, or of lists of them."""
    inner = getattr(feature, "feature", feature)
    names = getattr(inner, "names", None)
    return list(names) if names else None


def _named(value: Any, names: list[str] | None) -> Any:
    if names is None or value is None:
        return value
    if isinstance(value, list):
        return [_named(item, names) for item in value]
    if value == -1:  # the library's mark for "no label", which must not become a label of its own
        return None
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
