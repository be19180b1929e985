"""CSV and TSV files: cells with commas, semicolons or tabs between them, below a header."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lorary.training.data.contents import Rows, decode, twice
from lorary.training.recipe.raw import shown

_FIRST_LINE = re.compile(r"\S[^\r\n]*")

_BETWEEN: Mapping[str, tuple[str, str]] = {
    ",": ("commas", "name the file .csv"),
    ";": ("semicolons", "name the file .csv"),
    "\t": ("tabs", "name the file .tsv"),
    "|": ("bars", "save the file with commas"),
}
"""What may stand between columns -> its name, and how a file is mended where it wasn't expected."""

_RAGGED: Mapping[str, str] = {
    ",": "quote commas",
    ";": "quote semicolons",
    "\t": "expected a tab between cells and none in them",
}


@dataclass
class _Table:
    """A file's rows by their numbers, what is wrong with it, and whether quotes let it be read to its end."""

    rows: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    to_the_end: bool = True


def read_csv(content: bytes, problems: list[str]) -> Rows:
    """A CSV file's rows. Semicolons stand between its cells where its header has some and no comma."""
    text = decode(content, problems)
    table = _read(text, ";" if has_semicolons(text) else ",")
    problems += table.problems
    yield from table.rows


def has_semicolons(text: str) -> bool:
    """Do semicolons stand between the cells of a CSV file that begins with ``text``?"""
    header = _FIRST_LINE.search(text)
    return header is not None and ";" in header[0] and "," not in header[0]


def read_tsv(content: bytes, problems: list[str]) -> Rows:
    """A TSV file's rows. Double quotes are CSV's where the whole file agrees with that, else letters like others.

    Many such files (GLUE's) were written without quoting: a cell may begin with a quote that nothing closes, or that
    one some rows later seems to close. So where each line is a row by itself, quoting makes no fewer rows of them.
    """
    table, _ = _read_tabs(decode(content, problems))
    problems += table.problems
    yield from table.rows


def has_bare_quotes(content: bytes) -> bool:
    """Are there double quotes in this TSV file that are letters, where CSV's rules would take them for more?"""
    return _read_tabs(decode(content, []))[1]


def _read_tabs(text: str) -> tuple[_Table, bool]:
    """A TSV file, and whether :func:`has_bare_quotes`."""
    table = _read(text, "\t", quoted=False)
    if '"' not in text:
        return table, False
    quoted = _read(text, "\t")
    same = not quoted.problems and len(quoted.rows) == len(table.rows)
    return (quoted, False) if quoted.to_the_end and (same or table.problems) else (table, True)


def _read(text: str, between: str, *, quoted: bool = True) -> _Table:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the library's own is shorter than many a document
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, quoting=quoting, strict=True)
    table, header = _Table(), None
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if problem := _header_problem(header, between):
                    table.problems.append(f"row {reader.line_num}: {problem}")
                    break
            elif len(cells) != len(header):
                table.problems.append(
                    f"row {reader.line_num}: {len(cells)} cells, the header has {len(header)}; {_RAGGED[between]}"
                )
            else:
                table.rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        table.problems.append(f"row {reader.line_num}: not valid CSV ({error})")
        table.to_the_end = False
    return table


def _header_problem(header: list[str], between: str) -> str | None:
    """What is wrong with the names of the columns, or None."""
    if repeated := twice(header):
        return f"the header names {repeated} twice"
    found = next((others for sign, others in _BETWEEN.items() if sign in header[0]), None)
    if len(header) == 1 and found:
        expected, (name, mend) = _BETWEEN[between][0], found
        return f"expected {expected} between columns, found {name} ({shown(header[0])}); {mend}"
    return None
