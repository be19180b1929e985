"""``lorary curve``: the metric against the number of training rows, and whether more would help."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, SetOption, given_path, open_registry, run_folder
from lorary.hub.cli.output import print_json, print_line, print_note, print_table, short_number
from lorary.hub.pretrained_bases import bases_of

if TYPE_CHECKING:
    from lorary.training.experiments.curve import Curve

EXAMPLES = (
    "lorary curve recipe.yaml",
    "lorary curve recipe.yaml --points 4 --seeds 3 --plot curve.png",
    "lorary curve runs/tone-20261124-120000 --resume",
)


def command(
    recipe: Annotated[
        Path,
        typer.Argument(
            parser=given_path,
            metavar="RECIPE.yaml|RUN",
            help="The settings of each run; with --resume also a curve's folder.",
        ),
    ],
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a curve that was stopped: RUN, or the newest of RECIPE.yaml.")
    ] = False,
    points: Annotated[
        int | None,
        typer.Option(min=2, max=50, help="How many sizes, evenly spaced in their logarithm.", show_default="5"),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=100, help="How many runs at each size.", show_default="training.seeds, or 2"),
    ] = None,
    smallest: Annotated[int | None, typer.Option(min=2, help="The smallest number of rows.", show_default="8")] = None,
    set_: SetOption = None,
    plot: Annotated[Path | None, typer.Option(parser=given_path, metavar="FILE.png", help="Draw it too.")] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Train on ever more of the rows: would more rows help?

    Each size is trained with several seeds and measured on the same held-out rows. Nothing is registered.
    """
    from lorary.training.recipe import Recipe

    catalogue = open_registry(registry)
    if run := run_folder(recipe, resume, bool(set_)):
        from lorary.training.resume import recipe_of

        settings = recipe_of(run, Recipe, catalogue, "curve")
    else:
        settings = Recipe.load(recipe, set_ or ())
    from lorary.training.experiments.curve import demand_place, learning_curve
    from lorary.training.experiments.curve import plot as draw
    from lorary.training.progress import BarReporter

    if plot is not None:
        demand_place(plot)
    with BarReporter(settings.name) as reporter, bases_of(catalogue):
        curve = learning_curve(
            settings, catalogue, points=points, seeds=seeds, smallest=smallest, progress=reporter, resume=run or resume
        )
    # Before the plot, which may find the disk full: what took hours to measure isn't lost with it.
    if as_json:
        print_json({
            "metric": curve.metric, "held_out_rows": curve.held_out, "baselines": curve.baselines,
            "points": [{"rows": point.rows, "metrics": point.metrics} for point in curve.points],
            "advice": curve.advice,
        })  # fmt: skip
    else:
        _show(curve, settings.training.seed)
    if plot is not None:
        draw(curve, plot)
        print_note(f"Drawn in {plot}", aside=as_json)


def _show(curve: Curve, first: int) -> None:
    """``first``: the first seed."""
    print_table(
        [
            {
                "rows": point.rows,
                curve.metric: short_number(point.metrics[curve.metric]["mean"]),
                "spread": short_number(point.metrics[curve.metric]["std"]),
                **{
                    f"seed {first + place}": short_number(value)
                    for place, value in enumerate(point.metrics[curve.metric]["values"])
                },
            }
            for point in curve.points
        ]
    )
    print_line("")
    for split, values in curve.baselines.items():
        if curve.metric in values:
            print_line(f"{split}: {curve.metric} {short_number(values[curve.metric])}")
    print_line(curve.advice)
