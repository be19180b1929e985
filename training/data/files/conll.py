"""CoNLL files: a line for each word with its tag, and a blank line after each sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorary.training.data.files.contents import Manner, Rows, decode
from lorary.training.recipe.raw import shown


def read_conll(content: bytes, problems: list[str], manner: Manner) -> Rows:
    """A row for each sentence, numbered by its first line; of each line the first cell is the word, the last the tag.

    With a header, each column is a list of the sentence's cells, by the header's name for it. Lines before a sentence
    that begin with ``#`` are comments, unless they end in a tag that other words have.
    """
    header = manner.header
    lines = [*decode(content, problems, manner.encoding).split("\n"), ""]
    table = [[cell.strip() for cell in (line.split("\t") if "\t" in line else line.split())] for line in lines]
    marked = [line.split(maxsplit=1)[:1] == ["#"] for line in lines]  # a comment may hold tabs, too
    known = {cells[-1] for cells, mark in zip(table, marked, strict=True) if len(cells) > 1 and not mark}
    if header is None and _is_conllu(table, marked):
        problems.append("row 1: looks like CoNLL-U, whose words are in the second column; keep each word and its tag")
        return
    first, sentence = 0, list[list[str]]()
    for number, (line, cells, mark) in enumerate(zip(lines, table, marked, strict=True), start=1):
        if not any(cells) or cells[0] == "-DOCSTART-":
            if sentence:
                yield first, _columns(sentence, header)
            first, sentence = 0, []
        elif mark and not sentence and cells[-1] not in known:
            continue
        elif problem := _line_problem(cells, header):
            problems.append(f"row {number}: {problem}, found {shown(line.strip())}")
        else:
            first = first or number
            sentence.append(cells)


def _line_problem(cells: Sequence[str], header: Sequence[str] | None) -> str | None:
    if header is not None:
        return None if len(cells) == len(header) else f"expected {len(header)} cells (data.header)"
    return None if len(cells) > 1 and cells[0] and cells[-1] else "expected a word and its tag"


def _columns(sentence: Sequence[Sequence[str]], header: Sequence[str] | None) -> dict[str, Any]:
    if header is None:
        return {"tokens": [cells[0] for cells in sentence], "tags": [cells[-1] for cells in sentence]}
    return {name: list(column) for name, column in zip(header, zip(*sentence, strict=True), strict=True)}


def _is_conllu(table: Sequence[Sequence[str]], marked: Sequence[bool]) -> bool:
    """Do ten cells stand in each line, the first of them the word's number (https://universaldependencies.org)?"""
    words = [cells for cells, mark in zip(table, marked, strict=True) if any(cells) and not mark]
    return bool(words) and all(len(cells) == 10 and cells[0][:1].isdecimal() for cells in words)
