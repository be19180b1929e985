"""What the commands print: tables that fit the terminal, JSON, errors, and texts that can't play tricks on it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorary.hub.markup import clean
from lorary.hub.units import short_number, size
from lorary.hub.values import Version

__all__ = [
    "clean",
    "print_csv",
    "print_error",
    "print_fields",
    "print_json",
    "print_line",
    "print_matrix",
    "print_note",
    "print_table",
    "short_number",
    "size",
    "version_json",
]

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_GAP = 2
_NARROWEST = 6  # columns of a cell that is cut


def print_error(first: str, *more: str) -> None:
    """Print an error to stderr: one line, and one for each of several problems."""
    print(f"lorary: error: {clean(' '.join(first.split()))}", *map(clean, more), sep="\n", file=sys.stderr)


def print_warning(text: str) -> None:
    """Print a warning to stderr, on one line."""
    print(f"lorary: warning: {clean(' '.join(text.split()))}", file=sys.stderr)


def print_line(text: str) -> None:
    """Print a line of text that may hold names from the catalogue."""
    print(clean(text))


def print_json(value: Any) -> None:
    """Print a value as JSON in ASCII, which no terminal acts upon. What JSON has no number for is null."""
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), indent=2, allow_nan=False)
    print(text)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_note(text: str, *, aside: bool) -> None:
    """Print a line that isn't the answer itself; ``aside``: to stderr, where stdout is for a program."""
    print(clean(text), file=sys.stderr if aside else sys.stdout)


def print_csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Print rows as CSV: ``columns``, then whatever else the rows have, by name.

    A text that a spreadsheet would take for a formula begins with a quotation mark.
    """
    import csv

    rows = list(rows)
    more = sorted({name for row in rows for name in row}.difference(columns))
    writer = csv.DictWriter(sys.stdout, [*columns, *more], restval="", lineterminator="\n")
    writer.writerow({name: _csv_cell(name) for name in writer.fieldnames})
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)


def _csv_cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def version_json(version: Version) -> dict[str, Any]:
    """A version as plain JSON values, its reference first."""
    return {"reference": version.reference, **asdict(version)}


def print_table(rows: Sequence[Mapping[str, object]], *, expendable: Collection[str] = ()) -> None:
    """Print rows as aligned columns, named by the first row's keys.

    In a terminal that is too narrow, ``expendable`` columns go first, in their order; then cells are cut, the first
    column's last. In a pipe nothing is left out, so that ``grep`` finds what there is.
    """
    if not rows:
        return
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    columns = {name: [clean(row[name]) for row in rows] for name in rows[0]}
    widths = {name: max(map(cell_len, [clean(name), *cells])) for name, cells in columns.items()}
    console = Console(highlight=False)
    if console.is_terminal:
        _fit(widths, console.width, expendable)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name, width in widths.items():
        table.add_column(Text(clean(name)), width=width, no_wrap=True, overflow="ellipsis")
    for cells in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*map(Text, cells))
    _print(console, table, _total(widths) + _GAP)


def print_matrix(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table that loses nothing in a narrow terminal: what doesn't fit goes on below.

    The first column is repeated there.
    """
    from rich.cells import cell_len
    from rich.console import Console

    first, *others = rows[0]
    console = Console()
    widths = {name: max(cell_len(clean(text)) for text in (name, *(row[name] for row in rows))) for name in rows[0]}
    part: list[str] = []
    for name in [*others, None]:
        wide = sum(widths[one] + _GAP for one in [first, *part, *([name] if name else [])]) - _GAP
        if part and (name is None or (console.is_terminal and wide > console.width)):
            if part[0] != others[0]:
                print()
            print_table([{one: row[one] for one in (first, *part)} for row in rows])
            part = []
        if name:
            part.append(name)


def _fit(widths: dict[str, int], available: int, expendable: Collection[str]) -> None:
    for name in expendable:
        if _total(widths) <= available:
            return
        widths.pop(name, None)
    first, *others = widths
    while others and _total(widths) > available and widths[widest := max(others, key=widths.__getitem__)] > _NARROWEST:
        widths[widest] -= 1
    # The first column too before the others are pushed out: a name without its version says less.
    widths[first] = max(min(widths[first], _NARROWEST), widths[first] - max(0, _total(widths) - available))


def _total(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1)


def print_fields(fields: Mapping[str, object]) -> None:
    """Print names and values below one another, leaving out what is empty."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = {name: clean(value) for name, value in fields.items() if value not in (None, "")}
    grid = Table.grid(padding=(0, _GAP, 0, 0))
    grid.add_column(no_wrap=True, style="bold")
    grid.add_column(overflow="fold")
    for name, value in shown.items():
        grid.add_row(Text(name), Text(value))
    natural = 2 * _GAP + max(len(name) for name in shown) + 2 * max(len(value) for value in shown.values())
    _print(Console(highlight=False), grid, natural)


def _print(console: Console, table: Table, natural_width: int) -> None:
    if console.is_terminal:
        console.print(table)
        return
    # Rich takes a pipe for 80 columns and fills every line up with blanks.
    console.width = natural_width
    with console.capture() as captured:
        console.print(table)
    for line in captured.get().splitlines():
        print(line.rstrip())
