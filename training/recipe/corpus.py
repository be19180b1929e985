"""Running text in a recipe: which data are text files, and the settings that only running text has."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.recipe.data_files import TEXT_SUFFIXES, kind_of, without_gzip
from lorary.training.recipe.raw import section, shown
from lorary.training.recipe.tasks import TASK_FACTS

MEAN_SPAN = 3.0
"""The mean length of a hidden span in tokens, T5's and BART's."""

_ROWS = frozenset({".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"})
_ABOUT = frozenset({"readme", "license", "licence", "copying", "notice"})


def text_files(folder: Path) -> Iterator[Path]:
    """The text files below a folder, by path; hidden ones, and the README and licence at its top, aren't its text."""
    for path in visible_files(folder):
        about = path.parent == folder and without_gzip(path).stem.lower() in _ABOUT
        if kind_of(path) in TEXT_SUFFIXES and path.is_file() and not about:
            yield path


def is_text(text: str) -> bool:
    """Is this data setting a text file, or a folder that holds text files and no files of rows?

    Raises:
        DataError: the path can't be followed, or a folder below it can't be read.
    """
    path = Path(text).expanduser()
    try:
        folder = stat.S_ISDIR(path.stat().st_mode)
    except ValueError:  # a NUL
        folder = False
    except OSError as error:  # which `is_dir` keeps to itself from Python 3.14 on
        if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            raise DataError(shown(text), [f"can't be read: {error.strerror}"]) from error
        folder = False
    if not folder:
        return kind_of(path) in TEXT_SUFFIXES
    return not any(kind_of(file) in _ROWS for file in visible_files(path)) and next(text_files(path), None) is not None


def visible_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, by path, but for hidden ones and those in hidden folders.

    Raises:
        DataError: a folder can't be read; what it holds must not be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise DataError(str(error.filename), [f"can't be read: {error.strerror}"]) from error

    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if not name.startswith(".")]
    yield from sorted(found)


def takes_text(values: Mapping[str, Any]) -> bool:
    """Does the recipe's task learn from running text, with the columns that it names?"""
    facts = TASK_FACTS.get(str(values.get("task")))
    columns = section(section(values, "data"), "columns")
    return facts is not None and facts.corpus and not any(columns[role] for role in columns if role != "text")


def corpus_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What is wrong with the strategy ``continual``, and with settings that only running text or masks have."""
    task, data, training = values.get("task"), section(values, "data"), section(values, "training")
    facts = TASK_FACTS.get(str(task))
    if facts is None:
        return
    sources = [data[key] for key in ("train", "test", "validation") if isinstance(data.get(key), str)]
    if data.get("sample_by") is not None and not (facts.corpus and any(is_text(source) for source in sources)):
        read = ", ".join(TEXT_SUFFIXES)
        yield "data.sample_by", f"says how text files ({read}) fall into documents, and there are none; leave it out"
    if not facts.masks:
        for key in ("mlm_probability", "whole_word_mask", "mean_span"):
            if training.get(key):
                yield f"training.{key}", f"only fill-mask masks tokens; the task is {task}"
    if values.get("strategy") == "continual":
        yield from _continual(values)


def _continual(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    task = values.get("task")
    if not TASK_FACTS[str(task)].corpus:
        able = " or ".join(task for task, facts in TASK_FACTS.items() if facts.corpus)
        yield "strategy", f"'continual' goes on with pretraining, whose task is {able}, found {task}"
        return
    for role, column in section(section(values, "data"), "columns").items():
        if role != "text" and column is not None:
            yield f"data.columns.{role}", "strategy 'continual' learns from running text alone: only 'text' is a column"
    if section(values, "data").get("too_long") in ("drop", "error"):
        yield "data.too_long", "strategy 'continual' cuts documents into blocks, so none is too long; leave it out"
    if section(values, "training").get("packing"):
        yield "training.packing", "strategy 'continual' fills blocks with documents anyway; leave it out"
