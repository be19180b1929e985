"""The matrix that ``lorary domains`` and ``lorary tasks`` print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Annotated

import typer

from lorary.hub.cli.options import no_registry, one_form
from lorary.hub.cli.output import print_csv, print_json, print_line, print_matrix, short_number
from lorary.hub.finding.overview import Cell
from lorary.hub.registry import Registry

MetricOption = Annotated[
    str | None, typer.Option(metavar="NAME", help="The score to show; by default each cell's most telling one.")
]


def print_overview(
    catalogue: Registry, rows: str, columns: str, metric: str | None, *, as_json: bool, as_csv: bool
) -> None:
    """Print the cells, with ``rows`` (domain or task) down and ``columns`` (the other) across."""
    one_form(as_json, as_csv)
    cells = catalogue.overview(metric)
    if as_json:
        print_json([asdict(cell) for cell in cells])
    elif as_csv:
        print_csv([asdict(cell) for cell in cells], [field.name for field in fields(Cell)])
    elif cells:
        print_matrix(_table(cells, rows, columns))
    elif catalogue.path.exists():
        print_line(f"{catalogue.path} is empty.")
    else:
        print_line(no_registry(catalogue.path))


def _table(cells: Sequence[Cell], rows: str, columns: str) -> list[dict[str, object]]:
    """A row for each, the fullest columns first; the last two are the row's sums."""
    sizes: dict[str, int] = {}
    for cell in cells:
        name = getattr(cell, columns)
        sizes[name] = sizes.get(name, 0) + cell.versions
    across = sorted(sizes, key=lambda name: (-sizes[name], name))
    table = []
    for down in sorted({getattr(cell, rows) for cell in cells}):
        inside = {getattr(cell, columns): cell for cell in cells if getattr(cell, rows) == down}
        table.append(
            {
                rows: down,
                "adapters": sum(cell.adapters for cell in inside.values()),
                "versions": sum(cell.versions for cell in inside.values()),
                **{name: _told(inside[name]) if name in inside else "" for name in across},
            }
        )
    return table


def _told(cell: Cell) -> str:
    if cell.metric is None or cell.value is None:
        return f"{cell.versions:,}"
    return f"{cell.versions:,}: {cell.metric} {short_number(cell.value)}"
