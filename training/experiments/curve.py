"""The learning curve: the metric against the number of training rows, and whether more rows would help."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lorary.hub.errors import DataError, OutputError, RecipeError, UsageError
from lorary.hub.metrics import lower_is_better
from lorary.hub.registry import Registry
from lorary.training.data import Example, load_data
from lorary.training.data.splits import fewest_validation
from lorary.training.experiments.comparison import Comparison, Option, comparing
from lorary.training.experiments.summary import means, summarise
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import Recipe
from lorary.training.recipe.raw import shown
from lorary.training.run_facts import Check, metric_tables
from lorary.training.save import writing
from lorary.training.tasks import make_task
from lorary.training.tasks.base import Metrics

POINTS, SEEDS, SMALLEST = 5, 2, 8


@dataclass(frozen=True)
class Point:
    """One size of the training rows: each metric's mean, std and values over the seeds, on the held-out rows."""

    rows: int
    metrics: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Curve:
    """``metric`` is the one that the advice looks at.

    ``baselines`` are the untrained model's and the majority's, with all rows: the means over the seeds.
    """

    metric: str
    points: tuple[Point, ...]
    held_out: int
    baselines: Mapping[str, Metrics]
    advice: str

    @property
    def means(self) -> list[float]:
        """The metric's mean at each point."""
        return [float(point.metrics[self.metric]["mean"]) for point in self.points]


def learning_curve(
    recipe: Recipe, registry: Registry | None = None, *, points: int | None = None, seeds: int | None = None,
    smallest: int | None = None, progress: Reporter | None = None, resume: bool | str | Path = False,
) -> Curve:  # fmt: skip
    """Train on ever more of a recipe's rows and measure each adapter on the same held-out rows; none is registered.

    Sizes are evenly spaced in their logarithm. Each seed has an order of the rows, with the labels in proportion, and
    trains on its beginnings, so that more rows always means the same rows and others. Validation rows shrink alike.

    Args:
        recipe: the settings of each run.
        registry: the catalogue, which messages name.
        points: how many sizes; 5 unless given.
        seeds: how many runs at each size; the recipe's ``training.seeds`` unless given, and 2 where that has one.
        smallest: the smallest number of rows; 8 unless given.
        progress: is told of phases, steps and notices.
        resume: go on with a curve that was stopped: the newest of this recipe (True), or that of a folder. It keeps its
            points, seeds and smallest size.

    Raises:
        RecipeError: the recipe asks for folds, a strategy without training, or another adapter to start from.
        DataError: too few rows, or rows that can't be used.
        TrainingError: as :func:`lorary.training.train`.
        InterruptedRunError: Ctrl-C, SIGTERM or SIGHUP; the message says how to go on.
    """
    _check(recipe)
    reporter, registry = progress or Reporter(), registry or Registry()
    several = recipe.training.seeds if recipe.training.seeds > 1 else SEEDS
    asked = {"points": Option(points, POINTS), "seeds": Option(seeds, several), "smallest": Option(smallest, SMALLEST)}
    with comparing(recipe, registry, reporter, "curve", resume, asked) as comparison, quiet_libraries():
        return _draw(comparison)


def _draw(comparison: Comparison) -> Curve:
    recipe, reporter, run = comparison.recipe, comparison.reporter, comparison.unfinished
    points, seeds, smallest = (int(comparison.options[name]) for name in ("points", "seeds", "smallest"))
    reporter.phase("reading the data")
    data = load_data(recipe, reporter.note)
    sizes = curve_sizes(len(data.train), points, smallest)
    comparison.begin(data)
    found: dict[int, list[Mapping[str, Metrics]]] = {size: [] for size in sizes}
    metric = make_task(recipe, data.labels, data.problem_type).main_metric
    with writing(run.final):
        session = comparison.session()
        for seed in range(recipe.training.seed, recipe.training.seed + seeds):
            ordered, watched = in_proportion(data.train, seed), in_proportion(data.validation, seed)
            training = recipe.training.model_copy(update={"seed": seed, "seeds": 1})
            one = recipe.model_copy(
                update={"training": training, "report": recipe.report.model_copy(update={"write": False})}
            )
            for size in sizes:
                title = f"{size} rows, seed {seed}"
                if kept := run.part(title, _kept(metric)):
                    found[size].append(kept["metrics"])
                    continue
                count = round(len(watched) * size / len(data.train))
                rows = replace(
                    data,
                    train=ordered[:size],
                    validation=watched[:count] if count >= fewest_validation(recipe) else (),
                )
                finished = session.run(one, rows, title)
                session.release(finished)
                run.keep_part(title, {"metric": metric, "metrics": dict(finished.metrics)})
                session.forget(title)
                found[size].append(finished.metrics)
    whole = found[sizes[-1]]
    splits = [split for split in whole[0] if split != "test" and all(split in metrics for metrics in whole)]
    baselines = {split: means([metrics[split] for metrics in whole]) for split in splits}
    drawn = tuple(Point(size, summarise([run["test"] for run in found[size]])) for size in sizes)
    reporter.phase("done")
    return Curve(metric, drawn, len(data.test), baselines, advise(metric, drawn))


def _kept(metric: str) -> Mapping[str, Check]:
    """The checks of what is kept of a run whose task has this main metric."""

    def measured(value: Any) -> str | None:
        if problem := metric_tables(value):
            return problem
        return None if metric in value.get("test", {}) else f"test has no {metric!r}"

    return {
        "metric": lambda value: None if value == metric else f"expected {metric!r}, found {shown(value)}",
        "metrics": measured,
    }


def _check(recipe: Recipe) -> None:
    problems = []
    if recipe.training.folds:
        problems.append("training.folds: the curve has runs of its own; leave it out")
    if recipe.strategy == "direct":
        problems.append("strategy: 'direct' trains nothing, so more rows change nothing")
    if recipe.from_ is not None:
        problems.append("from: the curve shows what rows alone do for a fresh adapter; leave it out")
    if problems:
        raise RecipeError(recipe.name, problems)


def curve_sizes(count: int, points: int, smallest: int = SMALLEST) -> list[int]:
    """At most ``points`` numbers of rows, the last one all of them, each larger than the one before by one factor.

    Raises:
        DataError: there aren't twice as many rows as the smallest size.
    """
    if count < 2 * smallest:
        raise DataError("data", [f"{count} training rows are too few for a curve; expected at least {2 * smallest}"])
    factor = (count / smallest) ** (1 / (points - 1))
    return sorted({round(smallest * factor**place) for place in range(points - 1)} | {count})


def in_proportion(rows: Sequence[Example], seed: int) -> tuple[Example, ...]:
    """The rows in a random order of which every beginning has the labels in proportion, as far as whole rows can."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    labels = [str(row.values.get("label")) for row in rows]
    counts, seen = Counter(labels), Counter[str]()
    place: dict[int, float] = {}
    if len(counts) > max(2, len(rows) // 2):  # numbers rather than labels
        return tuple(rows[index] for index in order)
    for index in order:
        place[index] = (seen[labels[index]] + 0.5) / counts[labels[index]]
        seen[labels[index]] += 1
    return tuple(rows[index] for index in sorted(order, key=lambda index: place[index]))


def advise(metric: str, points: Sequence[Point]) -> str:
    """Would more rows help? The gain of the last stretch is held against the noise that the seeds show.

    The noise is the standard error of a difference of two means, from the spread over all points. A gain of more than
    twice the noise counts. What twice the rows may bring is read off a power law through the points (Hestness et al.
    2017), ``error = a * rows ** -b``.
    """
    before, last = points[-2:]
    sign = -1 if lower_is_better(metric) else 1
    means = [float(point.metrics[metric]["mean"]) for point in points]
    gain = sign * (means[-1] - means[-2])
    stretch = f"{metric} went from {means[-2]:.4g} to {means[-1]:.4g} between {before.rows} and {last.rows} rows"
    seeds = len(last.metrics[metric]["values"])
    if seeds < 2:
        return f"{stretch}; with one seed nobody can tell that from noise, use at least --seeds 2"
    variance = sum(float(point.metrics[metric]["std"]) ** 2 for point in points) / len(points)
    noise = math.sqrt(2 * variance / seeds)
    law = _power_law([point.rows for point in points], means, metric)
    if gain > 2 * noise and gain > 0:
        more = f"; a power law through the points expects {law:.4g} at {2 * last.rows} rows" if law is not None else ""
        return f"{stretch}, a gain of more than twice the seeds' noise ({noise:.2g}): more rows would help{more}"
    if gain < -2 * noise:
        return (
            f"{stretch}, which is worse by more than twice the seeds' noise ({noise:.2g}): look at the later rows, or "
            "train longer or with a larger lora.rank"
        )
    return (
        f"{stretch}, which is within twice the seeds' noise ({noise:.2g}): more rows like these would hardly help; "
        "better labels, a larger base or another recipe may"
    )


def _power_law(rows: Sequence[int], means: Sequence[float], metric: str) -> float | None:
    """The metric at twice the last number of rows; None where the error isn't a positive number that falls."""
    low = lower_is_better(metric)
    errors = [mean if low else 1 - mean for mean in means]
    if len(rows) < 3 or min(errors) <= 0:
        return None
    x, y = [math.log(count) for count in rows], [math.log(error) for error in errors]
    centre, level = sum(x) / len(x), sum(y) / len(y)
    slope = sum((a - centre) * (b - level) for a, b in zip(x, y, strict=True)) / sum((a - centre) ** 2 for a in x)
    if slope >= 0:
        return None
    error = math.exp(level + slope * (math.log(2 * rows[-1]) - centre))
    return error if low else 1 - error


def demand_place(path: Path) -> None:
    """Raise UsageError where :func:`plot` can't draw into a file: known before the hours that a curve takes."""
    from matplotlib.backend_bases import FigureCanvasBase

    if not path.parent.is_dir():
        raise UsageError(f"--plot {path}: there is no folder {path.parent}")
    if path.is_dir():
        raise UsageError(f"--plot {path}: it is a folder; name a file in it")
    if path.suffix[1:].lower() not in (kinds := FigureCanvasBase.filetypes):
        raise UsageError(
            f"--plot {path}: expected a name that ends in one of {', '.join(f'.{kind}' for kind in kinds)}"
        )


def plot(curve: Curve, path: Path) -> None:
    """Draw the curve, with the seeds' spread and the untrained model's level.

    Raises:
        OutputError: the file can't be written.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    spreads = [float(point.metrics[curve.metric]["std"]) for point in curve.points]
    axes.errorbar([point.rows for point in curve.points], curve.means, yerr=spreads, marker="o", capsize=3)
    for split, style in (("untrained", ":"), ("majority", "--")):
        if curve.metric in curve.baselines.get(split, {}):
            axes.axhline(curve.baselines[split][curve.metric], linestyle=style, color="grey", label=split)
    axes.set(xscale="log", xlabel="training rows", ylabel=f"{curve.metric} on {curve.held_out} held-out rows")
    if axes.get_legend_handles_labels()[0]:
        axes.legend()
    try:
        figure.savefig(path, dpi=150)
    except (OSError, ValueError) as error:
        raise OutputError(f"{path}: the curve can't be written there ({error})") from error
