"""Reading rows from JSONL, JSON, CSV, Parquet and CoNLL files, dataset folders and the Hub, each with its place.

The files are read here rather than by ``datasets`` because a row that can't be read has to be named by its line.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.errors import DataError, LoraryError
from lorary.hub.files.store import hash_file
from lorary.training.data.contents import decode, read_content
from lorary.training.recipe.check import is_data_file
from lorary.training.recipe.raw import shown as raw_value

SHOWN_PROBLEMS = 20
_COMMIT = re.compile("[0-9a-f]{40}")
MOST_HASHES = 200
"""Of files in a manifest; the hash over all of them is always there."""


@dataclass(frozen=True)
class Row:
    """One row as read: its values by column, and its place for messages (``train.jsonl, row 12``)."""

    values: Mapping[str, Any]
    place: str


@dataclass(frozen=True)
class Source:
    """All rows of one file or dataset, with what provenance says about it."""

    shown: str
    rows: tuple[Row, ...]
    sha256: str | None = None
    revision: str | None = None
    files: Mapping[str, str] | None = None  # each file's own hash, where there are several

    def provenance(self) -> dict[str, Any]:
        """Name, row count and hash; a file's name without the folders above it, which are nobody's business."""
        path = Path(self.shown)
        name = self.shown if not path.is_absolute() else path.name
        told = {"name": name, "rows": len(self.rows), "sha256": self.sha256, "revision": self.revision}
        return told if self.files is None else {**told, "files": dict(self.files)}


def read_source(text: str, *, split: str = "train", subset: str | None = None, revision: str | None = None) -> Source:
    """Read a data file, a dataset's folder or a dataset from the Hub.

    Raises:
        DataError: rows that can't be read, each by its number; no rows; no such dataset or split.
    """
    path = Path(text).expanduser()
    if is_data_file(text) and not path.is_dir():
        return _read_file(path, text)
    return _read_dataset(str(path) if path.is_dir() else text, text, split, subset, revision)


def report(subject: str, problems: list[str]) -> DataError:
    """The error for bad rows: the first twenty, and how many more there are."""
    more = len(problems) - SHOWN_PROBLEMS
    listed = problems[:SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return DataError(f"{subject} ({len(problems)} in all)" if more > 0 else subject, listed)


def _read_file(path: Path, shown: str) -> Source:
    content = read_content(path, shown)
    problems: list[str] = []
    rows = tuple(
        Row(values, f"{shown}, row {number}") for number, values in _READERS[path.suffix](content, shown, problems)
    )
    if problems:
        raise report(shown, problems)
    if not rows:
        raise DataError(shown, ["holds no rows; expected at least a few"])
    return Source(shown, rows, hashlib.sha256(content).hexdigest())


Rows = Iterator[tuple[int, dict[str, Any]]]


def _jsonl(content: bytes, shown: str, problems: list[str]) -> Rows:
    # Not splitlines(): U+2028 and its kind are allowed inside a JSON text.
    for number, line in enumerate(decode(content, problems).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            problems.append(f"row {number}: not valid JSON ({error})")
            continue
        yield from _object(number, row, problems)


def _json(content: bytes, shown: str, problems: list[str]) -> Rows:
    text = decode(content, problems)
    if problems or not text.strip():
        return
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        problems.append(f"not valid JSON ({error}); if each line is a row of its own, name the file .jsonl")
        return
    if not isinstance(values, list):
        problems.append(f"expected a list of rows, found {type(values).__name__}")
        return
    for number, row in enumerate(values, start=1):
        yield from _object(number, row, problems)


def _object(number: int, row: Any, problems: list[str]) -> Rows:
    """The row, where it has columns."""
    if isinstance(row, dict):
        yield number, row
    else:
        problems.append(f"row {number}: expected an object with columns, found {type(row).__name__}")


def _csv(content: bytes, shown: str, problems: list[str]) -> Rows:
    # The library's own limit is shorter than many a document.
    csv.field_size_limit(max(csv.field_size_limit(), len(content)))
    reader = csv.reader(io.StringIO(decode(content, problems), newline=""), strict=True)
    header: list[str] | None = None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if twice := _twice(header):
                    problems.append(f"row {reader.line_num}: the header names {twice} twice")
                    return
            elif len(cells) != len(header):
                problems.append(
                    f"row {reader.line_num}: {len(cells)} cells, the header has {len(header)}; quote commas"
                )
            else:
                yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        problems.append(f"row {reader.line_num}: not valid CSV ({error})")


def _twice(names: list[str]) -> str:
    """The names that stand more than once, for a message."""
    return ", ".join(repr(name) for name, count in sorted(Counter(names).items()) if count > 1)


def _parquet(content: bytes, shown: str, problems: list[str]) -> Rows:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content))
        if twice := _twice(file.schema_arrow.names):
            problems.append(f"there are two columns {twice}")
            return
        table = file.read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        problems.append(f"not a readable Parquet file ({reason})")
        return
    yield from enumerate(table.to_pylist(), start=1)


def _conll(content: bytes, shown: str, problems: list[str]) -> Rows:
    """A line for each word, its tag in the last column, a blank line after each sentence; a row is its first line."""
    first = 0
    words: list[str] = []
    tags: list[str] = []
    for number, line in enumerate([*decode(content, problems).split("\n"), ""], start=1):
        cells = line.split("\t") if "\t" in line else line.split()
        cells = [cell.strip() for cell in cells]
        if not any(cells) or cells[0] == "-DOCSTART-":
            if words:
                yield first, {"tokens": words, "tags": tags}
            first, words, tags = 0, [], []
        elif len(cells) < 2 or not cells[0] or not cells[-1]:
            problems.append(f"row {number}: expected a word and its tag, found {raw_value(line.strip())}")
        else:
            first = first or number
            words.append(cells[0])
            tags.append(cells[-1])


_READERS: Mapping[str, Callable[[bytes, str, list[str]], Rows]] = {
    ".jsonl": _jsonl,
    ".json": _json,
    ".csv": _csv,
    ".parquet": _parquet,
    ".conll": _conll,
}


def _read_dataset(location: str, shown: str, split: str, subset: str | None, revision: str | None) -> Source:
    import datasets

    datasets.disable_progress_bars()
    try:
        table = datasets.load_dataset(location, name=subset, split=split, revision=revision)
    except LoraryError:
        raise
    except Exception as error:  # the library raises a dozen kinds of its own and its file systems'
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(shown, [f"can't be loaded as a dataset (split {split!r}): {reason}"]) from error
    finally:
        datasets.enable_progress_bars()
    names = {column: _label_names(feature) for column, feature in table.features.items()}
    rows = tuple(
        Row(
            {column: _named(value, names[column]) for column, value in values.items()},
            f"{shown} ({split}), row {number}",
        )
        for number, values in enumerate(table, start=1)
    )
    if not rows:
        raise DataError(shown, [f"split {split!r} holds no rows"])
    folder = Path(location)
    if folder.is_dir():
        hashes = _hash_folder(folder)
        return Source(shown, rows, hash_of_all(hashes), files=hashes if len(hashes) <= MOST_HASHES else None)
    return Source(shown, rows, revision=_commit(table, location, revision) or revision)


def _hash_folder(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith(".")]
    return {path.relative_to(folder).as_posix(): hash_file(path).sha256 for path in paths}


def hash_of_all(hashes: Mapping[str, str]) -> str:
    """A file's own hash; of several, that of their names and hashes as ``sha256sum`` lists them."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256("".join(f"{value}  {name}\n" for name, value in hashes.items()).encode()).hexdigest()


def _commit(table: Any, dataset: str, revision: str | None) -> str | None:
    """The commit of a dataset from the Hub that was just loaded.

    ``datasets`` keeps its tables in folders that are called by the commit. Where it doesn't, the README's place in the
    Hub's cache tells it.
    """
    for file in table.cache_files:
        if _COMMIT.fullmatch(commit := Path(file["filename"]).parent.name):
            return commit
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        readme = try_to_load_from_cache(dataset, "README.md", revision=revision, repo_type="dataset")
    except HFValidationError:
        return None
    return Path(readme).parent.name if isinstance(readme, str) else None


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
    # -1 is the library's mark for "no label"; it is left for the row check to report.
    return names[value] if isinstance(value, int) and 0 <= value < len(names) else value
