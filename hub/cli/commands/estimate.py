"""``lorary estimate``: what a recipe will need, before anything is loaded."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.cli.options import (
    JsonOption,
    MemoryOption,
    RegistryOption,
    SetOption,
    given_memory,
    given_path,
    open_registry,
)
from lorary.hub.cli.output import print_json, print_line, print_table, size
from lorary.hub.pretrained_bases import bases_of
from lorary.hub.units import duration

if TYPE_CHECKING:
    from lorary.training.estimate.past import PastRuns
    from lorary.training.estimate.plan import Estimate

EXAMPLES = (
    "lorary estimate examples/recipes/text-classification.yaml",
    "lorary estimate recipe.yaml --set training.batch_size=32 --memory 24GB",
)


def command(
    recipe: Annotated[Path, typer.Argument(parser=given_path, metavar="RECIPE.yaml", help="The settings of the run.")],
    set_: SetOption = None,
    memory: MemoryOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Predict a run's peak memory, steps and time.

    Says what would make it fit, where it doesn't. The base's weights are neither loaded nor downloaded. Speed comes
    from earlier runs on the same device, where the catalogue has any. Exit code 1 when it doesn't fit.
    """
    available = given_memory(memory)
    from lorary.training.recipe import Recipe

    settings = Recipe.load(recipe, set_ or (), {"output": None})  # nothing is written, so a run may be there already
    catalogue = open_registry(registry)
    from lorary.training.estimate.past import PastRuns
    from lorary.training.estimate.plan import estimate
    from lorary.training.progress import BarReporter
    from lorary.training.strategies.parent import find_parent

    past = PastRuns.of(catalogue)
    with BarReporter(settings.name) as reporter, bases_of(catalogue):
        reporter.phase("estimating")
        found = estimate(settings, past, available, reporter, find_parent(settings, catalogue))
    if as_json:
        print_json(_plain(found, past))
    else:
        _print(found, past, memory)
    if not found.fits:
        raise typer.Exit(1)


def _print(found: Estimate, past: PastRuns, memory: str | None) -> None:
    cost, step = found.cost, found.cost.step
    parts = {
        "weights of the base": step.weights,
        "adapter, gradients, optimizer": step.adapter,
        f"activations of {step.tokens:,} tokens": step.activations,
        "libraries" if found.device.type == "cpu" else "context": cost.libraries,
        "kept by the allocator": cost.peak - cost.libraries - step.peak,
        "peak": cost.peak,
        "--memory" if memory else f"the {'machine' if found.device.type == 'cpu' else 'GPU'} has": found.available,
    }
    print_table([{"memory": name, "size": size(count)} for name, count in parts.items()])
    print_line("")
    print_line(f"Steps: {cost.steps:,}")
    print_line(f"Time:  {duration(cost.seconds)} ({cost.basis})")
    if found.runs > 1:
        print_line(f"Runs:  {found.runs}, each of about these steps and this time")
    errors = past.errors()
    if errors:
        print_line(
            f"Past:  predicted peaks were off by {abs(errors[len(errors) // 2]):.0%} in the middle, "
            f"{abs(errors[-1]):.0%} at worst, over {len(errors)} run{'s' if len(errors) > 1 else ''}"
        )
    if found.fits:
        print_line("It fits.")
        return
    print_line("")
    if not found.alternatives:
        print_line("It doesn't fit, and no setting of the run makes it smaller; a smaller base is the other way.")
        return
    print_line("It doesn't fit. The peak with other settings, each for --set:")
    print_table(
        [
            {
                "settings": " ".join(other.settings),
                "peak": size(other.peak),
                "fits": "yes" if other.peak <= found.available else "no",
            }
            for other in found.alternatives
        ]
    )


def _plain(found: Estimate, past: PastRuns) -> dict[str, Any]:
    return {
        "device": str(found.device),
        "peak_bytes": found.cost.peak,
        "available_bytes": found.available,
        "fits": found.fits,
        "steps": found.cost.steps,
        "seconds": found.cost.seconds,
        "basis": found.cost.basis,
        "runs": found.runs,
        "parts": {**asdict(found.cost.step), "libraries": found.cost.libraries},
        "alternatives": [asdict(other) for other in found.alternatives],
        "past_errors": past.errors(),
    }
