"""What the commands print of several runs: seeds, folds, and a base as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorary.hub.cli.output import print_json, print_line, print_metrics, print_table, short_number
from lorary.hub.metrics import SPLITS
from lorary.hub.pretrained_bases import bases_of

if TYPE_CHECKING:
    from pathlib import Path

    from lorary.hub.registry import Registry
    from lorary.training.recipe import Recipe


def measure_base(recipe: Recipe, registry: Registry, as_json: bool) -> None:
    """Strategy ``direct``: measure the base as it is, and print that."""
    from lorary.training.progress import BarReporter
    from lorary.training.strategies.direct import measure

    with BarReporter(recipe.name) as reporter, bases_of(registry):
        measured = measure(recipe, reporter)
    metrics = {split: dict(values) for split, values in measured.metrics.items()}
    rows = len(measured.test.features)
    if as_json:
        print_json({
            "strategy": "direct", "base": recipe.base, "task": recipe.task, "rows": rows,
            "metrics": metrics, "notices": reporter.notices,
        })  # fmt: skip
        return
    print_metrics(metrics, {**SPLITS, "untrained": "the base as it is"})
    print_line("")
    print_line(f"Measured on {rows} held-out rows; nothing was trained or registered.")


def ablate_recipe(
    recipe: Recipe, registry: Registry, corpus: str | None, seeds: int | None, as_json: bool,
    resume: bool | Path = False,
) -> None:  # fmt: skip
    """``--ablate``: the base as it is, the task alone, and domain then task; ``seeds`` as ``--seeds`` says."""
    from lorary.training.experiments.ablation import ablate
    from lorary.training.progress import BarReporter

    if seeds is None and recipe.training.seeds > 1:
        seeds = recipe.training.seeds
    with BarReporter(recipe.name) as reporter, bases_of(registry):
        found = ablate(recipe, registry, corpus=corpus, seeds=seeds, progress=reporter, resume=resume)
    if as_json:
        print_json({
            "metric": found.metric, "held_out_rows": found.held_out, "seeds": found.seeds, "parent": found.parent,
            "arms": found.arms, "gain": {**asdict(found.gain), "verdict": found.gain.verdict},
        })  # fmt: skip
        return
    names = found.arms["task"]
    print_table(
        [
            {
                "arm": arm,
                **{
                    name: f"{short_number(figures[name]['mean'])} ± {figures[name]['std']:.2g}"
                    if name in figures
                    else ""
                    for name in names
                },
            }
            for arm, figures in found.arms.items()
        ]
    )
    print_line("")
    print_line(f"Means over {len(found.seeds)} seeds on {found.held_out} held-out rows; domain stage: {found.parent}.")
    print_line(f"{found.verdict[0].upper()}{found.verdict[1:]}.")


def print_repeated(kind: str, told: Mapping[str, Any]) -> None:
    """The metrics of a recipe's seeds or folds: mean, spread and each run's own."""
    runs = told["seeds"] if kind == "seeds" else range(1, told["count"] + 1)
    print_table(
        [
            {
                "metric": name,
                "mean": short_number(figures["mean"]),
                "spread": short_number(figures["std"]),
                **{
                    f"{kind[:-1]} {run}": short_number(value)
                    for run, value in zip(runs, figures["values"], strict=True)
                },
            }
            for name, figures in told["metrics"].items()
        ]
    )
    print_line("")
    if kind == "seeds":
        print_line(f"Kept: seed {told['kept']}, {told['because']}.")
    else:
        epochs = told["epochs"]
        how_long = f"{told['steps']} steps" if epochs is None else f"{epochs:g} epochs"
        print_line(f"Kept: an adapter trained on all rows for {how_long}.")
