"""``lorary diff``: two adapters side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, print_table, short_number
from lorary.hub.errors import InvalidReferenceError

if TYPE_CHECKING:
    from lorary.hub.comparing.difference import Difference, MetricChange, Side
    from lorary.hub.comparing.norms import NormDifference
    from lorary.hub.registry import Registry

EXAMPLES = (
    "lorary diff finance-tone@prod finance-tone@candidate",
    "lorary diff finance-tone@3 ./out/finance-tone --all",
)

_SHOWN = 15  # modules
_TITLES = {"facts": "what they are", "config": "adapter_config.json", "manifest": "lorary.json"}


def command(
    left: Annotated[str, typer.Argument(metavar="A", help="name, name@3, name@alias, or a folder.")],
    right: Annotated[str, typer.Argument(metavar="B", help="What to compare it with, in the same forms.")],
    everything: Annotated[
        bool, typer.Option("--all", help=f"Show every module's weights, not the {_SHOWN} most different.")
    ] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Show how two adapters differ: settings, metrics and weights.

    The weights' table has the norm of each module's update (scale * B A), and that of their difference by the larger
    norm: 0 is the same update, about 1.4 an unrelated one, 2 the opposite.
    """
    from lorary.hub.comparing.difference import compare

    catalogue = open_registry(registry)
    difference = compare(_side(catalogue, left), _side(catalogue, right))
    if as_json:
        print_json(asdict(difference))
        return
    same = "the same adapter: weights, config and use are equal" if difference.same_digest else "two adapters"
    print_line(f"{difference.left} and {difference.right}: {same}")
    for name, changes in difference.sections.items():
        rows: list[dict[str, object]] = [
            {"": change.field, "A": _shown(change.left), "B": _shown(change.right)} for change in changes
        ]
        _print_section(_TITLES.get(name, name), rows)
    _print_section("metrics", [_metric(row) for row in difference.metrics])
    _print_weights(difference, everything)


def _side(catalogue: Registry, text: str) -> Side:
    from lorary.hub.checkpoint import read_checkpoint
    from lorary.hub.comparing.difference import Side
    from lorary.hub.reference import FolderReference, HubReference, parse_reference

    reference = parse_reference(text)
    if isinstance(reference, FolderReference):
        return Side(str(reference), read_checkpoint(reference.path))
    if isinstance(reference, HubReference):
        raise InvalidReferenceError(
            f"{text!r} is on the Hub; expected a version here or a folder, `lorary pull` it first"
        )
    version = catalogue.resolve(text)
    return Side(version.reference, catalogue.checkpoint(version), version)


def _print_section(title: str, rows: Sequence[dict[str, object]]) -> None:
    if rows:
        print_line("")
        print_line(title)
        print_table(rows)


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else str(value)


def _number(value: float | None) -> str:
    return "-" if value is None else short_number(value)


def _metric(row: MetricChange) -> dict[str, object]:
    difference = "" if row.difference is None else f"{row.difference:+.4g}"
    return {
        "metric": row.metric,
        "split": row.split,
        "A": _number(row.left),
        "B": _number(row.right),
        "B - A": difference,
    }


def _print_weights(difference: Difference, everything: bool) -> None:
    weights = difference.weights
    equal = [one for one in weights if one.difference == 0]
    unequal = [one for one in weights if one.difference != 0]
    shown = weights if everything else unequal[:_SHOWN]
    rows = [_weight(one) for one in shown]
    if not any(one.note for one in shown):
        rows = [{name: cell for name, cell in row.items() if name != "note"} for row in rows]
    _print_section("weights", rows)
    if everything:
        return
    if equal:
        print_line("")
        if not unequal:
            print_line("weights")
        print_line(f"the same in {len(equal)} of {len(weights)} modules")
    if len(unequal) > len(shown):
        print_line(f"{len(unequal) - len(shown)} more that differ less; --all shows them")


def _weight(one: NormDifference) -> dict[str, object]:
    return {
        "module": one.module,
        "|A|": _number(one.left),
        "|B|": _number(one.right),
        "|A - B|": _number(one.difference),
        "relative": _number(one.relative),
        "note": one.note,
    }
