"""What the commands print: tables that fit the terminal, JSON, errors, and texts that can't play tricks on it."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import is_dataclass
from json.encoder import encode_basestring_ascii
from types import NoneType
from typing import TYPE_CHECKING, Any

from lorary.hub.markup import clean
from lorary.hub.metrics import SPLITS, splits_of
from lorary.hub.units import short_number, size
from lorary.hub.values import Version

__all__ = [
    "clean",
    "print_csv",
    "print_error",
    "print_fields",
    "print_json",
    "print_json_list",
    "print_line",
    "print_matrix",
    "print_metrics",
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
    print(json.dumps(_finite(value), indent=2, allow_nan=False))


def print_json_list(values: Iterable[Any]) -> None:
    """Print what :func:`print_json` prints of a list, each value as soon as it is there; it is forgotten then."""
    before = "["
    for value in values:
        print(before, _indented(value, "\n  "), sep="\n  ", end="")
        before = ","
    print("[]" if before == "[" else "\n]")


def _indented(value: Any, margin: str) -> str:
    """The text of ``json.dumps(_finite(value), indent=2)`` at a margin, in a third of the time; all keys are texts."""
    if text := _TEXTS.get(type(value)):
        return text(value)
    value, inner = _fields(value), f"{margin}  "
    if not value or not isinstance(value, (dict, list, tuple)):
        return json.dumps(value)
    if isinstance(value, dict):
        lines = [f"{encode_basestring_ascii(name)}: {_indented(item, inner)}" for name, item in value.items()]
        return f"{{{inner}{f',{inner}'.join(lines)}{margin}}}"
    return f"[{inner}{f',{inner}'.join([_indented(item, inner) for item in value])}{margin}]"


_TEXTS: Mapping[type, Callable[[Any], str]] = {
    str: encode_basestring_ascii,
    int: int.__repr__,
    float: lambda value: float.__repr__(value) if math.isfinite(value) else "null",
    bool: lambda value: "true" if value else "false",
    NoneType: lambda _: "null",
}


def _fields(value: Any) -> Any:
    """A dataclass's fields by name, as ``asdict`` but without copies of what is in them; others as they are."""
    return {name: getattr(value, name) for name in value.__dataclass_fields__} if is_dataclass(value) else value


def _finite(value: Any) -> Any:
    value = _fields(value)
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_note(text: str, *, aside: bool) -> None:
    """Print a line that isn't the answer itself; ``aside``: to stderr, where stdout is for a program."""
    print(clean(text), file=sys.stderr if aside else sys.stdout)


def print_csv(rows: Iterable[Mapping[str, object]], columns: Sequence[str]) -> None:
    """Print rows as CSV, each as soon as it is there; of a row, what ``columns`` have.

    A text that a spreadsheet would take for a formula begins with a quotation mark.
    """
    import csv

    writer = csv.DictWriter(sys.stdout, columns, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writerow({name: _csv_cell(name) for name in writer.fieldnames})
    writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)


def _csv_cell(value: object) -> object:
    if not isinstance(value, str):
        return value
    text = clean(value)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def version_json(version: Version) -> dict[str, Any]:
    """A version's fields as :func:`print_json` takes them, its reference first."""
    return {"reference": version.reference, **_fields(version)}


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

    columns = {name: [_written(row[name]) for row in rows] for name in rows[0]}
    widths = {name: max(map(cell_len, [_written(name), *cells])) for name, cells in columns.items()}
    console = Console(highlight=False)
    if console.is_terminal:
        _fit(widths, console.width, expendable)
    table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
    for name, width in widths.items():
        table.add_column(Text(_cut(_written(name), width)), width=width, no_wrap=True)
        columns[name] = [_cut(cell, width) for cell in columns[name]]
    for cells in zip(*(columns[name] for name in widths), strict=True):
        table.add_row(*map(Text, cells))
    _print(console, table, _total(widths) + _GAP)


def print_metrics(metrics: Mapping[str, Mapping[str, float]], titles: Mapping[str, str] = SPLITS) -> None:
    """Print a row for each metric, with a column for each split under its title."""
    splits = splits_of(metrics)

    def cell(split: str, name: str) -> str:
        return short_number(metrics[split][name]) if name in metrics[split] else ""

    names = dict.fromkeys(name for split in splits for name in metrics[split])
    print_table(
        [{"metric": name, **{titles.get(split, split): cell(split, name) for split in splits}} for name in names]
    )


def print_matrix(rows: Sequence[Mapping[str, object]]) -> None:
    """Print rows as a table that loses nothing in a narrow terminal: what doesn't fit goes on below.

    The first column is repeated there.
    """
    from rich.cells import cell_len
    from rich.console import Console

    first, *others = rows[0]
    console = Console()
    widths = {name: max(cell_len(_written(text)) for text in (name, *(row[name] for row in rows))) for name in rows[0]}
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


def _written(text: object) -> str:
    """What stdout writes of a text: an escape stands for a sign that a terminal lacks, and is longer."""
    encoding = sys.stdout.encoding or "utf-8"
    return clean(text).encode(encoding, "backslashreplace").decode(encoding)


def _cut(text: str, width: int) -> str:
    """As much of what is written as there is room for."""
    from rich.cells import cell_len, set_cell_size

    end = "…" if _written("…") == "…" else "..."
    return text if cell_len(text) <= width else set_cell_size(text, width - len(end)) + end


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

    shown = {name: _written(value) for name, value in fields.items() if value not in (None, "")}
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
