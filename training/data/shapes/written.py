"""Lists and tables as text, which files without them (CSV) have: as JSON, as Python writes them, or as numpy prints
them, without commas between values."""

from __future__ import annotations

import ast
import io
import re
import tokenize
import warnings
from contextlib import suppress
from itertools import pairwise
from typing import Any

from lorary.adapters.text.tools import from_json_text

LIST = re.compile(r"\[.*\]", re.DOTALL)
"""A list as data frames write one into a CSV or TSV file."""

_BESIDE = re.compile(r"['\"]\s+['\"]")
"""Texts beside each other without a comma, which Python would make one of."""

_ENDS, _BEGINS = frozenset("}])"), frozenset("{[(")
_WORDS = frozenset({"True", "False", "None"})


def from_text(value: Any) -> Any:
    """What a text says as JSON or as Python's or numpy's list or table; itself where it is none, or no text."""
    found = from_json_text(value)
    return found if not isinstance(found, str) else _as_python(found.strip(), found)


def written_list(text: str) -> list[Any] | None:
    """The list that a text is; None of other texts."""
    if not LIST.fullmatch(text.strip()):
        return None
    found = from_text(text)
    return found if isinstance(found, list) else None


def _as_python(text: str, otherwise: Any) -> Any:
    with warnings.catch_warnings():  # of backslashes and numbers in what is no Python anyway
        warnings.simplefilter("ignore")
        return _evaluated(text, otherwise)


def _evaluated(text: str, otherwise: Any) -> Any:
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        if not _BESIDE.search(text):
            return ast.literal_eval(text)
    with suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(_with_commas(text))
    return otherwise


def _with_commas(text: str) -> str:
    """A text in Python's words with a comma wherever a value follows another one; those within texts are letters."""
    lines, places, ended = text.split("\n"), list[tuple[int, int]](), False
    with suppress(tokenize.TokenError, SyntaxError):
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.NL:
                continue
            value = token.type in (tokenize.STRING, tokenize.NUMBER) or token.string in _WORDS
            places += [token.start] if ended and (value or token.string in _BEGINS) else []
            ended = value or token.string in _ENDS
    by_line: dict[int, list[int]] = {}
    for row, column in places:
        by_line.setdefault(row - 1, []).append(column)
    for row, columns in by_line.items():
        ends = [*columns, len(lines[row])]
        lines[row] = ",".join(lines[row][start:end] for start, end in pairwise([0, *ends]))
    return "\n".join(lines)
