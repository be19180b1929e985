"""What JSONL, JSON, CSV, TSV, Parquet and CoNLL files and labelled lines hold, row by row.

They are read here rather than by ``datasets`` because a row that can't be read has to be named by its line.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from typing import Any

from lorary.hub.errors import first_line
from lorary.training.data.files.column_json import is_frame, table_rows
from lorary.training.data.files.conll import read_conll
from lorary.training.data.files.contents import Manner, Rows, decode, twice
from lorary.training.data.files.label_names import with_label_names
from lorary.training.data.files.labelled_lines import read_lines
from lorary.training.data.files.nested import as_written
from lorary.training.data.files.separated import read_csv, read_tsv
from lorary.training.data.shapes.answers import squad_rows
from lorary.training.recipe.data_files import LABELLED_LINES
from lorary.training.recipe.raw import shown


class _Reader:
    """Reads JSON as ``json`` does, which keeps the last of equal keys, and knows the objects that have such keys."""

    def __init__(self) -> None:
        self.decode = json.JSONDecoder(object_pairs_hook=self._object).decode
        self._repeating: dict[int, tuple[Any, str]] = {}  # by their identity, which holds as long as they are kept

    def _object(self, pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            (key, _), *_ = Counter(key for key, _ in pairs).most_common(1)
            self._repeating[id(made)] = made, key
        return made

    def repeated(self, row: Any) -> str | None:
        """A key that an object of the row has twice, or None."""
        parts = [row] if self._repeating else []
        while parts:
            part = parts.pop()
            if id(part) in self._repeating:
                return self._repeating[id(part)][1]
            parts += part.values() if isinstance(part, dict) else part if isinstance(part, list) else ()
        return None


def _jsonl(content: bytes, problems: list[str], manner: Manner) -> Rows:
    reader = _Reader()
    # Not splitlines(): U+2028 and its kind are allowed inside a JSON text.
    lines = decode(content, problems, manner.encoding).split("\n")
    alone = len(list(islice(filter(str.strip, lines), 2))) == 1
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if line.strip() in ("[", "{"):
            problems.append(
                f"row {number}: {line.strip()} goes on in the next line, and a row is a line of its own; if the file "
                "is one list of rows, name it .json"
            )
            return
        try:
            row = reader.decode(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"row {number}: not valid JSON ({error})")
            continue
        if alone and manner.header is None and is_frame(row):  # which wasn't written line by line
            yield from _rows_of(row, problems, manner, reader)
        else:
            yield from _object(number, row, problems, reader, manner.header)


def _json(content: bytes, problems: list[str], manner: Manner) -> Rows:
    text = decode(content, problems, manner.encoding)
    if problems or not text.strip():
        return
    reader = _Reader()
    try:
        values = reader.decode(text)
    except (ValueError, RecursionError) as error:
        if _is_row(text.lstrip().split("\n", 1)[0]):  # as many publish what is JSONL
            yield from _jsonl(content, problems, manner)
            return
        problems.append(f"not valid JSON ({error})")
        return
    yield from _rows_of(values, problems, manner, reader)


def _rows_of(values: Any, problems: list[str], manner: Manner, reader: _Reader) -> Rows:
    """The rows of a whole JSON file, which holds them as a list, or in one of the ways that tables are written."""
    if manner.header is None and (table := _table(values, problems, manner, reader)) is not None:
        values = table
    else:
        values = squad_rows(values) or _list_within(values, manner)
    if not isinstance(values, list):
        keys = f" with the keys {shown(list(values))}{_mend(values, manner)}" if isinstance(values, dict) else ""
        problems.append(f"expected a list of rows, found {type(values).__name__}{keys}")
        return
    for number, row in enumerate(values, start=1):
        yield from _object(number, row, problems, reader, manner.header)


def _table(value: Any, problems: list[str], manner: Manner, reader: _Reader) -> list[dict[str, Any]] | None:
    """The rows of an object that holds columns; none where they don't fit each other, which ``problems`` is told."""
    try:
        rows = table_rows(value, manner.split)
    except ValueError as error:
        key = reader.repeated(value)
        problems.append(str(error) if key is None else _stands_twice(key))
        return []
    key = None if rows is None or any(map(reader.repeated, rows)) else reader.repeated(value)
    if key is not None:
        problems.append(_stands_twice(key))
        return []
    return rows


def _list_within(value: Any, manner: Manner) -> Any:
    """The rows of an object that holds several lists of them by their splits' names, or a single one by any name."""
    if not isinstance(value, dict):
        return value
    kind = dict if manner.header is None else list
    lists = {
        key: rows
        for key, rows in value.items()
        if isinstance(rows, list) and rows and all(isinstance(row, kind) for row in rows)
    }
    return lists.get(manner.split) or (next(iter(lists.values())) if len(lists) == 1 else value)


def _mend(value: Mapping[str, Any], manner: Manner) -> str:
    if isinstance(rows := value.get(manner.split), list) and rows and isinstance(rows[0], list):
        return f"; the rows under {manner.split!r} are lists, whose columns are named with data.header"
    of_frame = "columns" in value or all(isinstance(part, dict) for part in value.values())
    how = " (a data frame's with to_json(orient='records'))" if of_frame else ""
    mend = f"name their key with data.train_split, or save the rows as one list{how}"
    return f", and no rows under {manner.split!r}; {mend}"


def _is_row(line: str) -> bool:
    """Is this line a JSON object by itself?"""
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _object(number: int, row: Any, problems: list[str], reader: _Reader, header: Sequence[str] | None) -> Rows:
    """The row, where it has columns, and each but once; with a ``header`` it is a list of their values."""
    if header is not None:
        if isinstance(row, list) and len(row) == len(header):
            yield number, dict(zip(header, row, strict=True))
        else:
            found = f"a list of {len(row)}" if isinstance(row, list) else type(row).__name__
            problems.append(f"row {number}: expected a list of {len(header)} values (data.header), found {found}")
    elif isinstance(row, list):
        problems.append(f"row {number}: expected an object with columns, found list; name its columns with data.header")
    elif not isinstance(row, dict):
        problems.append(f"row {number}: expected an object with columns, found {type(row).__name__}")
    elif (key := reader.repeated(row)) is not None:
        problems.append(f"row {number}: {_stands_twice(key)}")
    else:
        yield number, row


def _stands_twice(key: str) -> str:
    return f"the key {key!r} stands twice; keep one of them"


def _parquet(content: bytes, problems: list[str], manner: Manner) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        if repeated := twice(file.schema_arrow.names):
            problems.append(f"there are two columns {repeated}")
            return
        table = file.read()
        features = _features(table.schema)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        problems.append(f"not a readable Parquet file ({first_line(error)})")
        return
    rows = as_written(table.to_pylist(), table.schema, json_text=True)
    yield from enumerate(with_label_names(rows, features), start=1)


def _features(schema: Any) -> Mapping[str, Any]:
    """What the ``datasets`` library noted of the columns of a file that it wrote: labels' names, for instance."""
    if b"huggingface" not in (schema.metadata or {}):
        return {}
    import datasets

    features: Mapping[str, Any] = datasets.Features.from_arrow_schema(schema)
    return features


READERS: Mapping[str, Callable[[bytes, list[str], Manner], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".parquet": _parquet,
    ".conll": read_conll,
    **dict.fromkeys(LABELLED_LINES, read_lines),
}
"""A file's suffix -> its reader, which is given the content, a list for what can't be read, and the recipe's manner."""
