"""``train``: from a recipe to a version in the catalogue."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorary.adapters import Backbone
from lorary.adapters.golden import choose_rows, condense
from lorary.hub.bases import bases_of
from lorary.hub.errors import (
    InterruptedRunError,
    LoraryError,
    RegistryConflictError,
    RegistryError,
    TrainingError,
    UsageError,
)
from lorary.hub.metrics import lower_is_better
from lorary.hub.reference import normalise_domain
from lorary.hub.registry import Registry
from lorary.hub.values import Version
from lorary.training.data import Examples, load_data
from lorary.training.distributed import ALONE, Group
from lorary.training.fitting.overfitting import find_gap
from lorary.training.fitting.padding import padding_hint
from lorary.training.gate import gate
from lorary.training.interrupt import Stops
from lorary.training.model import Base, Shelf, take_off
from lorary.training.prepare import Prepared, prepare
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.provenance import provenance
from lorary.training.recipe import Recipe
from lorary.training.report.content import Report
from lorary.training.report.page import write_pages
from lorary.training.resume import begin, check_base, check_same, choose_run, registered_run
from lorary.training.save import (
    Trained,
    adapter_tensors,
    numerics_of,
    save,
    writing,
)
from lorary.training.strategies.parent import Parent, find_parent
from lorary.training.tasks import Encoded, Task, make_task
from lorary.training.tasks.base import Metrics
from lorary.training.unfinished import Unfinished, claimed


@dataclass(frozen=True)
class Finished:
    """A run after its last step: ``prepared`` holds the trained model, in the form that is saved.

    ``expected`` are the trained model's metrics on the gate's rows, ``outcomes`` what it makes of each held-out row.
    """

    prepared: Prepared
    trained: Trained
    metrics: Mapping[str, Metrics]
    rows: Encoded
    expected: Metrics
    report: Report | None
    outcomes: Sequence[Any] = ()
    best_epoch: float | None = None


def train(
    recipe: Recipe,
    registry: Registry | None = None,
    progress: Reporter | None = None,
    resume: bool | str | Path = False,
    shelf: Shelf | None = None,
    group: Group = ALONE,
) -> Version:
    """Train an adapter, hold its saved files against the trained model, and register it.

    Args:
        recipe: from :meth:`Recipe.load` or :meth:`Recipe.from_flags`.
        registry: the catalogue to add it to; the default one unless given.
        progress: is told of phases, steps and notices.
        resume: go on with a run that was stopped: the newest of this recipe (True), or that of a folder. On the same
            machine the result is that of a run that wasn't stopped.
        shelf: keeps the base in memory for the next call that is given the same shelf, where it asks for the same base.
        group: the processes that train together; the others of them call :func:`take_part`.

    Returns:
        The version; the run's folder is named in the recipe or begins with ``runs/``.

    Raises:
        DataError: rows that can't be used, all of them by file and number; nothing was loaded or trained.
        BaseNotFoundError: the base can't be found or loaded.
        TrainingError: the run can't go on, or there is no such run to go on with; the message says what to change.
        GateError: the saved files don't give back what was trained; nothing was registered.
        RecipeError: the recipe contradicts the adapter that it starts from.
        BaseMismatchError: that adapter was trained on another base.
        RegistryError: the catalogue can't take the adapter; known before the run where that can be known.
        InterruptedRunError: Ctrl-C or SIGTERM; nothing was registered, and the message says how to go on.
    """
    if recipe.strategy == "direct":
        raise UsageError("strategy 'direct' trains nothing; lorary.training.measure(recipe) measures the base as it is")
    reporter = progress or Reporter()
    registry = registry or Registry()
    _check_registry(recipe, registry)
    parent = find_parent(recipe, registry)
    unfinished = choose_run(recipe, resume, registry)
    if resume is not False and (version := registered_run(unfinished.final, registry)):
        reporter.note(f"{unfinished.final} is finished already: it is {version.reference}")
        reporter.folder = unfinished.final
        group.from_first(None)  # the others have nothing to do
        return version
    if resume is not False and not unfinished.resumable:
        raise TrainingError(f"{unfinished.folder}: no such unfinished run; leave --resume out to start one")
    try:
        with Stops() as stops, claimed(unfinished):
            metrics: Mapping[str, Metrics] | None = unfinished.result()
            if metrics is None:
                shelf = shelf or Shelf()
                metrics = _train(
                    unfinished, recipe, registry, reporter, stops, parent, group, shelf, resumed=resume is not False
                )
            else:
                group.from_first(None)
            reporter.folder = unfinished.final
            reporter.phase("registering")
            version = _register(recipe, registry, unfinished.final, metrics, parent)
    except (KeyboardInterrupt, InterruptedRunError) as error:
        hint = unfinished.hint(registry) or "no files are left"
        raise InterruptedRunError(f"{recipe.name}: stopped, nothing was registered; {hint}") from error
    except LoraryError:
        if unfinished.claimed and (kept := unfinished.hint(registry)):
            reporter.note(kept)
        raise
    reporter.phase("done")
    return version


def _train(
    unfinished: Unfinished, recipe: Recipe, registry: Registry, reporter: Reporter, stops: Stops,
    parent: Parent | None, group: Group, shelf: Shelf, *, resumed: bool,
) -> Mapping[str, Metrics]:  # fmt: skip
    """From the rows to the checked files in their place; the metrics."""
    # Rows are checked before the seconds that the libraries and the base take.
    reporter.phase("reading the data")
    # Folds hold every row out once, so what the first split has to say of its sizes says nothing.
    data = load_data(recipe, (lambda line: None) if recipe.training.folds else reporter.note)
    with writing(unfinished.final):
        if resumed:
            check_same(unfinished, recipe, data.provenance, parent, group.count, reporter)
        else:
            begin(unfinished, recipe, data.provenance, parent, group.count)
    group.from_first(Shared(unfinished.checkpoints, parent))
    one_of_several = recipe.training.seeds > 1 or recipe.training.folds
    with quiet_libraries(), bases_of(registry):
        with writing(unfinished.final):
            base = shelf.take(recipe, make_task(recipe, data.labels, data.problem_type))
            if one_of_several:
                finished = _run_several(recipe, data, parent, base, unfinished, reporter, stops)
            else:
                finished = _run_once(recipe, data, parent, base, unfinished, reporter, stops, group)
        reporter.phase("checking the saved files")
        check(finished, unfinished.files, registry)
        shelf.put(recipe, finished.prepared.task, finished.prepared.base)
        with writing(unfinished.final):
            unfinished.complete(finished.metrics)
    return finished.metrics


def _run_once(
    recipe: Recipe, data: Examples, parent: Parent | None, base: Base | None, unfinished: Unfinished,
    reporter: Reporter, stops: Stops, group: Group,
) -> Finished:  # fmt: skip
    """One run, and its files."""
    prepared = prepare(recipe, data, reporter, parent, base)
    check_base(unfinished, prepared.base.identity)
    finished = run(prepared, unfinished.checkpoints, reporter, stops, group)
    reporter.phase("saving")
    save_run(finished, unfinished.new_files())
    return finished


def _run_several(
    recipe: Recipe, data: Examples, parent: Parent | None, base: Base | None, unfinished: Unfinished,
    reporter: Reporter, stops: Stops,
) -> Finished:  # fmt: skip
    """A run for each seed or fold; the one that is kept, and its files."""
    from lorary.training.experiments.repeated import run_folds, run_seeds
    from lorary.training.experiments.session import Session

    session = Session(unfinished.checkpoints, reporter, stops, lambda base: check_base(unfinished, base.identity), base)
    several = run_folds if recipe.training.folds else run_seeds
    return several(recipe, data, parent, session, unfinished.new_files())


def save_run(finished: Finished, files: Path) -> None:
    """Write a finished run's adapter and report into ``files``."""
    save(finished.prepared, finished.trained, files)
    if finished.report:
        write_pages(finished.report, files)


@dataclass(frozen=True)
class Shared:
    """What the first process of a group tells the others."""

    checkpoints: Path
    parent: Parent | None


def take_part(recipe: Recipe, group: Group) -> None:
    """Train with the first process of ``group``, which calls :func:`train`: as it, without a word and without files.

    Raises as :func:`train`.
    """
    shared: Shared | None = group.from_first(None)
    if shared is None:
        return
    from lorary.training.fitting.fit import fit

    with Stops() as stops, quiet_libraries():
        prepared = prepare(recipe, load_data(recipe), Reporter(), shared.parent)
        with prepared.task.scaled(prepared.model, prepared.train):
            fit(
                prepared.model, prepared.base.tokenizer, prepared.task, prepared.train, prepared.validation, recipe,
                folder=shared.checkpoints, reporter=Reporter(), stops=stops, group=group,
            )  # fmt: skip


def _check_registry(recipe: Recipe, registry: Registry) -> None:
    """What the catalogue would refuse after the run is refused before it."""
    folder = registry.path if registry.path.exists() else registry.path.parent
    if folder.exists() and not os.access(folder, os.W_OK):
        raise RegistryError(f"{registry.path}: can't be written; name another registry, or make it writable")
    for version in registry.versions(recipe.name):
        for what, theirs, ours in (
            ("domain", version.domain, normalise_domain(recipe.domain)),
            ("task", version.task, recipe.task),
        ):
            if theirs != ours:
                raise RegistryConflictError(
                    f"{recipe.name!r} is in {registry.path} with the {what} {theirs!r}, the recipe says {ours!r}; "
                    "choose another name"
                )


def _register(
    recipe: Recipe, registry: Registry, folder: Path, metrics: Mapping[str, Metrics], parent: Parent | None
) -> Version:
    version = registry.add(
        folder,
        name=recipe.name,
        domain=recipe.domain,
        task=recipe.task,
        metrics=metrics,
        tags=recipe.tags,
        parents=[parent.version.reference] if parent and parent.version else [],
        strategy=recipe.strategy,
    )
    if recipe.alias is not None:
        registry.alias(recipe.name, recipe.alias, version.number)
        version = registry.resolve(version.reference)
    return version


def run(
    prepared: Prepared, checkpoints: Path, reporter: Reporter, stops: Stops | None = None, group: Group = ALONE
) -> Finished:
    """Measure the untrained model, train, and measure again. Raises as :func:`train`.

    Args:
        checkpoints: where they go, and where the newest is gone on from; they hold pickles.
        stops: whether the user has asked to stop.
        group: the processes that train together.
    """
    # Only here, so that a run that ends with its data's mistakes doesn't wait for the trainers' imports.
    from lorary.training.estimate.plan import predict
    from lorary.training.fitting.fit import fit
    from lorary.training.fitting.memory_fallback import in_smaller_batches
    from lorary.training.report.build import build_report

    recipe, task, model, test = prepared.recipe, prepared.task, prepared.model, prepared.test
    device = next(model.parameters()).device
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)

    def answers(model: Any) -> list[Any]:
        def in_batches(size: int) -> list[Any]:
            return task.outcomes(model, test, prepared.base.tokenizer, size)

        return in_smaller_batches(in_batches, recipe.training.batch_size, reporter.note)

    reporter.phase("measuring untrained")
    metrics = {"untrained": task.metrics(answers(model), test.golds)}
    metrics |= task.baselines(prepared.data.train, prepared.train, test, prepared.base.tokenizer)
    for line in task.caveats(test.golds):
        reporter.note(line)
    estimate = predict(prepared) if recipe.report.write else None
    hint = padding_hint([len(feature["input_ids"]) for feature in prepared.train.features], recipe)
    if hint:
        reporter.note(hint)
    reporter.phase("training")
    with task.scaled(model, prepared.train):
        fitted = fit(
            model, prepared.base.tokenizer, task, prepared.train, prepared.validation, recipe,
            folder=checkpoints, reporter=reporter, stops=stops or Stops(), group=group,
        )  # fmt: skip
    reporter.phase("measuring")
    prepared = prepared.settled()
    model = prepared.model
    outcomes = answers(model)
    metrics["test"] = task.metrics(outcomes, test.golds)
    gap = None
    if prepared.data.held_out:
        _note_no_gain(task, metrics, reporter)
        gap = find_gap(prepared, metrics["test"], fitted, reporter.note)
    rows = test.head(task.gate_rows)
    golden_rows = choose_rows([feature["input_ids"] for feature in test.features])
    trained = Trained(
        tensors=adapter_tensors(model),
        golden_rows=tuple(tuple(row) for row in golden_rows),
        golden=tuple(condense(task.name, logits) for logits in task.golden(model, golden_rows)),
        numerics=numerics_of(model, recipe),
        provenance=provenance(prepared, fitted, fitted.seconds, estimate, reporter) | ({"gap": gap} if gap else {}),
    )
    # One row at a time, as the gate asks for them: on an 8-bit base a row's logits depend on its batch mates.
    found = task.outcomes(model, rows, prepared.base.tokenizer, batch_size=1)
    report = None
    if recipe.report.write and prepared.data.held_out:
        report = build_report(prepared, fitted, metrics, outcomes, trained.provenance)
    expected = task.metrics(found, rows.golds)
    return Finished(prepared, trained, metrics, rows, expected, report, outcomes, fitted.best_epoch)


def check(finished: Finished, files: Path, registry: Registry) -> None:
    """Take the adapter off the base in memory, load the saved files onto it, and compare.

    Raises:
        GateError: they don't give back what was trained.
    """
    prepared = finished.prepared
    plain = take_off(prepared.model)
    backbone = Backbone.from_model(
        plain, prepared.base.tokenizer, identity=prepared.base.identity, slots=1, registry=registry
    )
    gate(files, backbone, prepared.task, finished.trained, finished.rows, finished.expected)
    backbone.release()


def _note_no_gain(task: Task, metrics: Mapping[str, Metrics], reporter: Reporter) -> None:
    """Say so where training didn't help: the adapter is valid, but nobody should have to find that out in use."""
    name, sign = task.main_metric, -1 if lower_is_better(task.main_metric) else 1
    trained = metrics["test"][name]
    for split, values in metrics.items():
        other = values.get(name) if split != "test" else None
        if other is not None and sign * trained <= sign * other:
            reporter.note(f"no better than {split} on the held-out rows: {name} {trained:.4g} against {other:.4g}")
