"""Reading rows from files, dataset folders and the Hub, each with its place."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lorary.hub.errors import DataError, LoraryError, first_line
from lorary.hub.files.store import hash_file
from lorary.training.data.files.contents import Manner
from lorary.training.data.files.folders import check_folder
from lorary.training.data.files.label_names import with_label_names
from lorary.training.data.files.nested import as_written
from lorary.training.data.files.opening import read_content
from lorary.training.data.files.readers import READERS
from lorary.training.recipe.data_files import is_data_file, kind_of

_Made = TypeVar("_Made")

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
    """All rows of one file or dataset, with what provenance says about it.

    ``unread`` says of each row that can't be read why: whoever checks the others tells of it beside their mistakes.
    ``left_out`` rows were read, and aren't there as the recipe asks for it.
    """

    shown: str
    rows: tuple[Row, ...]
    sha256: str | None = None
    revision: str | None = None
    files: Mapping[str, str] | None = None  # each file's own hash, where there are several
    unread: tuple[str, ...] = ()
    left_out: int = 0

    def provenance(self) -> dict[str, Any]:
        """Name, row count and hash; a file's name without the folders above it, which are nobody's business."""
        path = Path(self.shown)
        name = self.shown if not path.is_absolute() else path.name
        told = {"name": name, "rows": len(self.rows), "sha256": self.sha256, "revision": self.revision}
        told |= {"left_out": self.left_out} if self.left_out else {}
        return told if self.files is None else {**told, "files": dict(self.files)}


def read_source(
    text: str, manner: Manner | None = None, *, subset: str | None = None, revision: str | None = None
) -> Source:
    """Read a data file, a dataset's folder or a dataset from the Hub.

    Raises:
        DataError: no row can be read, no rows, no such dataset or split.
    """
    path, manner = Path(text).expanduser(), manner or Manner()
    if is_data_file(text) and not path.is_dir():
        return _read_file(path, text, manner)
    # Whole, since a folder that is called `.` has no name for the library.
    return _read_dataset(str(path.resolve()) if path.is_dir() else text, text, manner.split, subset, revision)


def report(subject: str, problems: list[str], count: int | None = None, hints: Sequence[str] = ()) -> DataError:
    """The error for bad rows: the first twenty, and how many more there are.

    ``count`` is how many there are in all, where not each has a text in ``problems``.
    """
    count = len(problems) if count is None else count
    more = count - SHOWN_PROBLEMS
    listed = problems[:SHOWN_PROBLEMS] + ([f"and {more} more"] if more > 0 else [])
    return DataError(f"{subject} ({count} in all)" if more > 0 else subject, listed, hints)


def bad_rows(source: Source, problems: Sequence[str], hints: Sequence[str] = ()) -> DataError:
    """The error for a source: its rows that can't be read, then the ``problems`` of the others, and what would help."""
    return report("rows", [*(f"{source.shown}, {problem}" for problem in source.unread), *problems], hints=hints)


def for_each(sources: Mapping[str, Source], do: Callable[[Source], _Made]) -> dict[str, _Made]:
    """What ``do`` makes of each source, whose mistakes come together.

    Raises:
        DataError: what ``do`` raises of one of them, or the problems of several.
    """
    made, errors = {}, []
    for part, source in sources.items():
        try:
            made[part] = do(source)
        except DataError as error:
            errors.append(error)
    if len(errors) > 1:
        hints = dict.fromkeys(hint for error in errors for hint in error.hints)
        raise DataError("data", [problem for error in errors for problem in error.problems], [*hints])
    if errors:
        raise errors[0]
    return made


def _read_file(path: Path, shown: str, manner: Manner) -> Source:
    content, sha256 = read_content(path, shown)
    problems: list[str] = []
    found = READERS[kind_of(path)](content, problems, manner)
    rows = tuple(Row(values, f"{shown}, row {number}") for number, values in found)
    if problems and not rows:
        raise report(shown, problems)
    if not rows:
        raise DataError(shown, ["holds no rows; expected at least a few"])
    return Source(shown, rows, sha256, unread=tuple(problems))


def _read_dataset(location: str, shown: str, split: str, subset: str | None, revision: str | None) -> Source:
    import datasets

    if (folder := Path(location)).is_dir():
        check_folder(folder, shown)
    datasets.disable_progress_bars()
    try:
        if (folder / "state.json").is_file():  # what Dataset.save_to_disk leaves: one table
            if (split, subset) != ("train", None):
                raise DataError(shown, [f"was saved as one table, without splits; found {subset or split!r}"])
            table = datasets.load_from_disk(location)
        else:
            table = datasets.load_dataset(location, name=subset, split=split, revision=revision)
    except LoraryError:
        raise
    except Exception as error:  # the library raises a dozen kinds of its own and its file systems'
        raise DataError(shown, [f"can't be loaded as a dataset (split {split!r}): {_reason(error)}"]) from error
    finally:
        datasets.enable_progress_bars()
    named = with_label_names(as_written(table, table.features.arrow_schema, json_text=False), table.features)
    rows = tuple(Row(values, f"{shown} ({split}), row {number}") for number, values in enumerate(named, start=1))
    if not rows:
        raise DataError(shown, [f"split {split!r} holds no rows"])
    if folder.is_dir():
        if table.info.builder_name == "text":
            raise DataError(
                shown,
                ["its text files would be rows, line by line; name a file of rows, or a folder of text files alone"],
            )
        hashes = _hash_folder(folder)
        return Source(shown, rows, hash_of_all(hashes), files=hashes if len(hashes) <= MOST_HASHES else None)
    return Source(shown, rows, revision=_commit(table, location, revision) or revision)


def _reason(error: Exception) -> str:
    """Why ``datasets`` couldn't make a table: of an error while it did, the one beneath says so."""
    from datasets.exceptions import DatasetGenerationError
    from datasets.table import CastError

    if isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        if isinstance(error.__cause__, CastError):
            return "its files don't have the same columns; name one of them, or put those of a kind into a folder"
        return first_line(error.__cause__)
    return first_line(error)


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
