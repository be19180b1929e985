"""Nested values of tables as they were written: a table gives each struct all fields of all rows, and JSON as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

Read = Callable[[Any], Any]


def as_written(rows: Iterable[Mapping[str, Any]], schema: Any, *, json_text: bool) -> Iterator[dict[str, Any]]:
    """Rows by column, without the fields of structs that are empty: those of another row's tool are none of this one's.

    Args:
        schema: pyarrow's, of the table.
        json_text: values of JSON columns are texts as yet.
    """
    readers = {field.name: _reader(field.type, json_text) for field in schema}
    for row in rows:
        yield {
            column: value if value is None or (read := readers.get(column)) is None else read(value)
            for column, value in row.items()
        }


def _reader(kind: Any, json_text: bool) -> Read | None:
    """How a value of an Arrow type is read; None where it stays as it is."""
    from pyarrow import types

    if getattr(kind, "extension_name", None) == "arrow.json":
        return json.loads if json_text else None
    if types.is_struct(kind):
        return _of_struct({field.name: _reader(field.type, json_text) for field in kind})
    listed = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    read = _reader(kind.value_type, json_text) if listed else None
    return None if read is None else lambda values: [None if value is None else read(value) for value in values]


def _of_struct(fields: Mapping[str, Read | None]) -> Read:
    def read(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value  # what the library made of it: an image, say
        return {
            name: part if (own := fields[name]) is None else own(part)
            for name, part in value.items()
            if part is not None
        }

    return read
