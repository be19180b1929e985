"""Advice on a recipe: which strategy and settings fit these rows, by measurements that take no training."""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from lorary.adapters.running.inference import longest_input
from lorary.hub.errors import EstimateError, LoraryError, RecipeError
from lorary.hub.pretrained_bases import bases_of
from lorary.hub.registry import Registry
from lorary.hub.units import size
from lorary.training.advisor.bench import Bench, Start, open_base
from lorary.training.advisor.beside import Beside, look_beside
from lorary.training.advisor.measure import manner_of
from lorary.training.advisor.rows import RowFacts, look_at, unlike
from lorary.training.advisor.setting import Setting, with_settings
from lorary.training.advisor.settle import (
    beside_hints,
    best_start_settings,
    fold_settings,
    lead_hints,
    luck,
    ready_hints,
    row_hints,
    row_settings,
    weight_settings,
)
from lorary.training.advisor.starts import candidates, not_tried
from lorary.training.data import Example, Examples, load_data
from lorary.training.estimate.past import PastRuns
from lorary.training.estimate.plan import Estimate, estimate, on_meta
from lorary.training.experiments.curve import in_proportion
from lorary.training.model import Base, check_settings
from lorary.training.prepare import encode_parts
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import Recipe
from lorary.training.recipe.raw import read_value
from lorary.training.strategies.parent import Parent, find_parent
from lorary.training.tasks import Encoded, Task, make_task

ROWS, STARTS = 500, 8
_FEWEST = 20  # rows, below which nothing measured on them could be told from luck


@dataclass(frozen=True)
class Advice:
    """What was measured, and what it comes to.

    ``recipe`` is the one that was ``asked`` about, with the ``settings`` put in. ``starts`` are the base and
    adapters on it, measured on ``rows`` training rows by ``metric``, which is a linear probe's where ``probed``;
    none where nothing can be told before training. ``baselines``: the metric of what knows the labels but not the
    texts. ``noise`` is how much the metric varies by the luck of the held-out rows
    (:func:`~lorary.training.advisor.settle.luck`). ``hints`` say what no setting mends. ``estimate`` is the advised
    recipe's, None where there can be none.
    """

    asked: Recipe
    recipe: Recipe
    facts: RowFacts
    rows: int
    metric: str | None = None
    probed: bool = False
    starts: tuple[Start, ...] = ()
    baselines: Mapping[str, float] = field(default_factory=dict)
    beside: Beside = field(default_factory=Beside)
    noise: float | None = None
    settings: tuple[Setting, ...] = ()
    hints: tuple[str, ...] = ()
    estimate: Estimate | None = None


def advise(
    recipe: Recipe, registry: Registry | None = None, *, rows: int = ROWS, starts: int = STARTS,
    memory: int | None = None, progress: Reporter | None = None,
) -> Advice:  # fmt: skip
    """Measure what a recipe's rows, base and catalogue say about how to train. Nothing is trained or registered.

    What reads with a head of its own (classification, tagging) is probed: a linear model on frozen states (Alain and
    Bengio 2016), cross-validated over training rows, for the base and for adapters of the catalogue. Other tasks are
    measured as they are. The held-out rows are counted and otherwise left alone.

    Args:
        recipe: what is to be trained; it starts from nothing.
        registry: the catalogue.
        rows: how many training rows are measured on, at most.
        starts: how many adapters are tried, at most: the newest version of each name, the nearest first.
        memory: bytes that the run has to fit into; by default those of the recipe's device.
        progress: is told of phases and notices.

    Raises:
        RecipeError: the recipe says what it starts from, trains nothing, or asks for what its device or method doesn't
            take.
        DataError: rows that can't be used.
        BaseNotFoundError: the base can't be found or loaded.
        TrainingError: the base can't be trained for the task, or not with these settings.
    """
    _check(recipe)
    check_settings(recipe)
    reporter, registry = progress or Reporter(), registry or Registry()
    reporter.phase("reading the data")
    data = load_data(recipe, reporter.note)
    with quiet_libraries(), bases_of(registry):
        advice = _measure(recipe, data, registry, reporter, rows, starts)
        gc.collect()  # the base that was measured, whose memory the run won't find taken
        reporter.phase("estimating")
        advice = _fitted(advice, data, registry, memory, reporter)
    reporter.phase("done")
    return advice


def _check(recipe: Recipe) -> None:
    problems = []
    if recipe.from_ is not None:
        problems.append("from: what to start from is what is asked here; leave it out")
    if recipe.strategy == "direct":
        problems.append("strategy: 'direct' trains nothing, so there is nothing to advise")
    if problems:
        raise RecipeError(recipe.name, problems)


def _measure(recipe: Recipe, data: Examples, registry: Registry, reporter: Reporter, most: int, starts: int) -> Advice:
    task = make_task(recipe, data.labels, data.problem_type)
    task.begin(data.train)
    manner = manner_of(task)
    reporter.phase("loading the base")
    base = open_base(recipe, task, manner)
    longest = min(base.tokenizer.model_max_length, longest_input(base.model) or sys.maxsize)
    asking, repeated, contradicting = unlike(data.train)
    picked = in_proportion(asking, recipe.training.seed)[:most]
    encoded, _, length = encode_parts(recipe, {"train": picked}, task, base, reporter)
    rows = encoded["train"]
    count = len(rows.examples)
    told = _whole(recipe, picked, task, base) if recipe.data.too_long == "drop" else rows
    facts = look_at(data, told, _tokenizer(recipe, data, base), length, repeated, contradicting)
    advice = with_more(Advice(recipe, recipe, facts, count), row_settings(facts, recipe, longest), row_hints(facts))
    if manner is None:
        return with_more(
            advice, hints=["pairs are measured against the model that they change, so not before training"]
        )
    if count < _FEWEST:
        return with_more(advice, hints=[f"{count} rows are too few to measure anything on"])
    bench = Bench(base, task, manner, rows, recipe.training.batch_size, registry)
    tried = _try_starts(bench, base, recipe, data, registry, reporter, starts)
    reporter.phase("measuring the rows")
    beside = look_beside(bench, recipe, facts)
    noise = luck(bench.scorer, bench.best.measured, rows.golds, facts.held_out)
    bench.release()
    metric = bench.scorer.main_metric
    known = task.baselines(picked, rows, rows, base.tokenizer) if bench.probed else {}
    advice = replace(
        advice, metric=metric, probed=bench.probed, starts=tuple(tried), beside=beside, noise=noise,
        baselines={name: values[metric] for name, values in known.items()},
    )  # fmt: skip
    settings = [
        *best_start_settings(bench.best.start, recipe, metric, bench.probed),
        *weight_settings(beside, metric),
        *fold_settings(advice.facts, recipe, metric, noise),
    ]
    hints = [
        *ready_hints(tried, bench.best.start, metric),
        *lead_hints(tried, bench.best.start, recipe, metric),
        *beside_hints(beside, metric, tried[0].score, advice.baselines),
    ]
    return with_more(advice, settings, hints)


def _whole(recipe: Recipe, picked: Sequence[Example], task: Task, base: Base) -> Encoded:
    """The rows with those that the recipe drops, whose lengths say that they are dropped."""
    cut = recipe.model_copy(update={"data": recipe.data.model_copy(update={"too_long": "truncate"})})
    return encode_parts(cut, {"train": picked}, task, base, Reporter())[0]["train"]


def _tokenizer(recipe: Recipe, data: Examples, base: Base) -> Any:
    """The base's, with the tokens that the recipe adds."""
    if not recipe.tokens.add:
        return base.tokenizer
    return on_meta(recipe, data, base.tokenizer, deepcopy(base.model.config), None)[1].tokenizer


def _try_starts(
    bench: Bench, base: Base, recipe: Recipe, data: Examples, registry: Registry, reporter: Reporter, most: int
) -> list[Start]:
    """The base and the adapters that could be measured on it."""

    def without_weights(changed: Recipe, parent: Parent) -> tuple[Task, Base]:
        return on_meta(changed, data, base.tokenizer, base.model.config, parent)

    found = candidates(recipe, base.identity.fingerprint, data.provenance, registry, most, bench.takes, without_weights)
    for line in found.refused:
        reporter.note(line)
    if found.left:
        reporter.note(f"{found.left} more adapters of this base aren't tried; --starts {most + found.left} tries all")
    reporter.phase("measuring the base")
    tried = [bench.begin(len(found.tried))]
    for place, version in enumerate(found.tried, start=1):
        reporter.phase(f"measuring {version.reference}")
        reporter.step(place, len(found.tried), math.nan)
        try:
            tried.append(bench.try_start(version))
        except LoraryError as error:
            reporter.note(not_tried(version, error))
    return tried


def with_more(advice: Advice, settings: Iterable[Sequence[Setting]] = (), hints: Iterable[str] = ()) -> Advice:
    """Advice with more settings, as far as they don't contradict what the user has chosen, and more hints.

    Of ``settings``, each item's mean something together alone: all of them are taken, or none. The last one of a key
    counts.
    """
    taken, told, recipe = list(advice.settings), list(advice.hints), advice.recipe
    for together in settings:
        try:
            recipe = with_settings(advice.asked, [*taken, *together])
        except RecipeError as error:
            what = ", ".join(f"{setting.key}: {setting.value}" for setting in together)
            told.append(f"{what} would help ({together[0].why}), but {'; '.join(error.problems)}")
        else:
            keys = {setting.key for setting in together}
            taken = [*(setting for setting in taken if setting.key not in keys), *together]
    return replace(advice, recipe=recipe, settings=tuple(taken), hints=(*told, *hints))


def _fitted(
    advice: Advice, data: Examples, registry: Registry, memory: int | None, reporter: Reporter
) -> Advice:  # fmt: skip
    """With what the run will need, and with the least change that makes it fit where it doesn't."""
    past = PastRuns.of(registry)

    def needs(recipe: Recipe) -> Estimate:
        read = data if recipe.data == advice.asked.data else None
        return estimate(recipe, past, memory, reporter, find_parent(recipe, registry), read)

    try:
        found = needs(advice.recipe)
    except EstimateError as error:
        return with_more(advice, hints=[f"memory can't be estimated: {error}"])
    if found.fits:
        return replace(advice, estimate=found)
    why = f"the run would take {size(found.cost.peak)}, there are {size(found.available)}"
    for other in found.alternatives:
        if other.peak <= found.available:
            pairs = (text.partition("=") for text in other.settings)
            less = [Setting(key, read_value(value), f"{why}; {size(other.peak)} with it") for key, _, value in pairs]
            fitted = with_more(advice, [less])
            return replace(fitted, estimate=needs(fitted.recipe))
    return replace(with_more(advice, hints=[f"it fits with no settings: {why}"]), estimate=found)
