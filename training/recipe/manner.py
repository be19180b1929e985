"""How files are read that don't say it themselves: names of columns, what separates cells, the encoding."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lorary.training.recipe.corpus import is_text
from lorary.training.recipe.data_files import kind_of
from lorary.training.recipe.raw import section, shown
from lorary.training.recipe.tasks import TASK_FACTS

_FILES: Mapping[str, tuple[str, ...]] = {
    "header": (".csv", ".tsv", ".conll", ".json", ".jsonl"),
    "separator": (".csv", ".tsv"),
    "encoding": (".csv", ".tsv", ".conll", ".json", ".jsonl", ".label"),
}
"""A setting -> the files of rows that it may be said of."""


def manner_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each of these settings that isn't one, or that the recipe's files have no use for; files without lists."""
    data = section(values, "data")
    header, separator, encoding = data.get("header"), data.get("separator"), data.get("encoding")
    if isinstance(header, (list, tuple)):
        if not header:
            yield "data.header", "the list is empty; name each column, in order"
        elif repeated := [name for name, count in Counter(map(str, header)).items() if count > 1]:
            yield "data.header", f"{', '.join(map(repr, repeated))} is listed twice"
    if isinstance(separator, str) and (len(separator) > 1 or separator in ("\n", "\r", '"')):
        yield "data.separator", f'expected one sign between cells, such as "@" or "\\t", found {shown(separator)}'
    files = [text for key in ("train", "test", "validation") if isinstance(text := data.get(key), str) and text]
    if isinstance(encoding, str) and encoding.lower() != "utf-8":
        try:
            plain = "\n".encode(encoding) == b"\n"
        except (LookupError, UnicodeError):
            plain = None
            yield "data.encoding", f"Python knows no text encoding {encoding!r}; such as latin-1, cp1252 or utf-16"
        if plain is False and any(is_text(text) for text in files):
            yield "data.encoding", f"running text isn't read in {encoding}; save it as UTF-8"
    if data.get("sentence_column") is not None:
        yield from _word_rows(str(values.get("task")), files)
    for key, kinds in _FILES.items():
        if data.get(key) in (None, "utf-8"):
            continue
        for text in files:
            if kind_of(Path(text)) not in kinds and not (key == "encoding" and is_text(text)):
                able = ", ".join(kinds) + (" and text files" if key == "encoding" else "")
                yield f"data.{key}", f"is said of {able}, found {text!r}; leave it out, or name the file itself"
                break


def _word_rows(task: str, files: Sequence[str]) -> Iterator[tuple[str, str]]:
    key = "data.sentence_column"
    if task in TASK_FACTS and task != "token-classification":
        yield key, f"only token-classification has words a row; the task is {task}"
    elif any(kind_of(Path(text)) == ".conll" for text in files):
        yield key, "a .conll file has a blank line after each sentence; leave it out"
