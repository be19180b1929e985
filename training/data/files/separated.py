"""CSV and TSV files: cells with commas, semicolons or tabs between them, below a header.

Above it a CSV file may name what stands between its cells, as Excel reads it: ``sep=;``.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from lorary.training.data.files.contents import Manner, Rows, decode, twice
from lorary.training.recipe.raw import shown

_NAMING = re.compile(r"\"?sep=[^\r\n]*", re.IGNORECASE)
_NAMED = re.compile(r"(\"?)sep=([^\w\"])\1[ \t]*", re.IGNORECASE)
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


def read_csv(content: bytes, problems: list[str], manner: Manner) -> Rows:
    """A CSV file's rows. What stands between its cells is what the recipe or the file's first line names, if they name
    anything, else semicolons where its header has some and no comma."""
    if manner.separator is not None:
        yield from read_tsv(content, problems, manner)
        return
    text = decode(content, problems, manner.encoding)
    line = naming_line(text)
    if line is None:
        table = _read(text, ";" if has_semicolons(text) else ",", manner.header)
    elif named := _NAMED.fullmatch(line):
        table = _read(text, named[2], manner.header, line=line)
    else:
        problems.append(f"row 1: expected one sign behind sep=, as in sep=;, found {shown(line)}")
        return
    problems += table.problems
    yield from table.rows


def naming_line(text: str) -> str | None:
    """The line that names what stands between a CSV file's cells, where the file's ``text`` begins with one."""
    found = _NAMING.match(text)
    return None if found is None else found[0]


def has_semicolons(text: str) -> bool:
    """Do semicolons stand between the cells of a CSV file that begins with ``text``?"""
    header = _FIRST_LINE.search(text)
    return header is not None and ";" in header[0] and "," not in header[0]


def read_tsv(content: bytes, problems: list[str], manner: Manner) -> Rows:
    """The rows of a TSV file, or of one with another separator. Double quotes are CSV's where the whole file agrees
    with that, else letters like others.

    Many such files (GLUE's) were written without quoting: a cell may begin with a quote that nothing closes, or that
    one some rows later seems to close. So where each line is a row by itself, quoting makes no fewer rows of them.
    """
    table, _ = _read_bare(decode(content, problems, manner.encoding), manner.separator or "\t", manner.header)
    problems += table.problems
    yield from table.rows


def has_bare_quotes(content: bytes) -> bool:
    """Are there double quotes in this TSV file that are letters, where CSV's rules would take them for more?"""
    return _read_bare(decode(content, []), "\t", None)[1]


def _read_bare(text: str, between: str, header: Sequence[str] | None) -> tuple[_Table, bool]:
    """A TSV file, and whether :func:`has_bare_quotes`."""
    table = _read(text, between, header, quoted=False)
    if '"' not in text:
        return table, False
    quoted = _read(text, between, header)
    same = not quoted.problems and len(quoted.rows) == len(table.rows)
    return (quoted, False) if quoted.to_the_end and (same or table.problems) else (table, True)


def _read(
    text: str, between: str, given: Sequence[str] | None, *, quoted: bool = True, line: str | None = None
) -> _Table:
    """A file's rows with ``between`` between their cells, which its first line says where that is ``line``. The names
    of the columns are those ``given``, else those in the first row."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # the library's own is shorter than many a document
    quoting: Literal[0, 3] = csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=between, quoting=quoting, strict=True)
    table, header = _Table(), None if given is None else [*given]
    try:
        for cells in reader:
            if not any(cell.strip() for cell in cells) or (line is not None and reader.line_num == 1):
                continue
            if header is None:
                header = [cell.strip() or f"column {place}" for place, cell in enumerate(cells, start=1)]
                if problem := _header_problem(header, between, line):
                    table.problems.append(f"row {reader.line_num}: {problem}")
                    break
            elif given is not None and [cell.strip() for cell in cells] == header:
                table.problems.append(f"row {reader.line_num}: names the columns already; leave data.header out")
            elif len(cells) != len(header):
                mend = _RAGGED.get(between, f"quote each {between!r} in a cell")
                which = "the header" if given is None else "data.header"
                table.problems.append(f"row {reader.line_num}: {len(cells)} cells, {which} has {len(header)}; {mend}")
            else:
                table.rows.append((reader.line_num, dict(zip(header, cells, strict=True))))
    except csv.Error as error:
        table.problems.append(f"row {reader.line_num}: not valid CSV ({error})")
        table.to_the_end = False
    return table


def _header_problem(header: list[str], between: str, line: str | None) -> str | None:
    """What is wrong with the names of the columns, or None."""
    if repeated := twice(header):
        return f"the header names {repeated} twice"
    found = next((others for sign, others in _BETWEEN.items() if sign in header[0]), None)
    if len(header) == 1 and found:
        name, mend = found
        expected = _BETWEEN[between][0] if between in _BETWEEN else repr(between)
        said, mend = ("", mend) if line is None else (f" (row 1: {shown(line)})", "mend row 1")
        return f"expected {expected} between columns{said}, found {name} ({shown(header[0])}); {mend}"
    return None
