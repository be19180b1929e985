"""``train``: from a recipe to a version in the catalogue."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lorary.adapters import Backbone
from lorary.adapters.golden import choose_rows, condense
from lorary.hub.errors import InterruptedRunError, LoraryError, RegistryConflictError, RegistryError
from lorary.hub.metrics import lower_is_better
from lorary.hub.reference import normalise_domain
from lorary.hub.registry import Registry
from lorary.hub.values import Version
from lorary.training.data import load_data
from lorary.training.fitting.evaluate import token_logits
from lorary.training.gate import ROWS, gate
from lorary.training.model import take_off
from lorary.training.prepare import Prepared, prepare
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.provenance import provenance
from lorary.training.recipe import Recipe
from lorary.training.report.content import Report
from lorary.training.report.page import write_pages
from lorary.training.save import (
    Trained,
    adapter_tensors,
    complete,
    numerics_of,
    output_folder,
    partial_folder,
    save,
    writing,
)
from lorary.training.strategies.parent import Parent, find_parent
from lorary.training.tasks import Encoded, Task
from lorary.training.tasks.base import Metrics


@dataclass(frozen=True)
class Finished:
    """A run after its last step: ``prepared`` holds the trained model, in the form that is saved.

    ``expected`` are the trained model's metrics on the gate's rows.
    """

    prepared: Prepared
    trained: Trained
    metrics: Mapping[str, Metrics]
    rows: Encoded
    expected: Metrics
    report: Report | None


def train(recipe: Recipe, registry: Registry | None = None, progress: Reporter | None = None) -> Version:
    """Train an adapter, hold its saved files against the trained model, and register it.

    Args:
        recipe: from :meth:`Recipe.load` or :meth:`Recipe.from_flags`.
        registry: the catalogue to add it to; the default one unless given.
        progress: is told of phases, steps and notices.

    Returns:
        The version; the run's folder is named in the recipe or begins with ``runs/``.

    Raises:
        DataError: rows that can't be used, all of them by file and number; nothing was loaded or trained.
        BaseNotFoundError: the base can't be found or loaded.
        TrainingError: the run can't go on; the message says from which step and what to change.
        GateError: the saved files don't give back what was trained; nothing was registered.
        RecipeError: the recipe contradicts the adapter that it starts from.
        BaseMismatchError: that adapter was trained on another base.
        RegistryError: the catalogue can't take the adapter; known before the run where that can be known.
        InterruptedRunError: Ctrl-C; nothing was registered and no files are left.
    """
    reporter = progress or Reporter()
    registry = registry or Registry()
    _check_registry(recipe, registry)
    parent = find_parent(recipe, registry)
    final = output_folder(recipe)
    try:
        # Rows are checked before the seconds that the libraries and the base take.
        reporter.phase("reading the data")
        data = load_data(recipe, reporter.note)
        with quiet_libraries(), partial_folder(final) as folder:
            prepared = prepare(recipe, data, reporter, parent)
            files = folder / recipe.name
            with writing(final):
                finished = run(prepared, folder / "checkpoints", reporter)
                reporter.phase("saving")
                save(finished.prepared, finished.trained, files)
                if finished.report:
                    write_pages(finished.report, files)
            reporter.phase("checking the saved files")
            check(finished, files, registry)
            complete(files, final)
            reporter.folder = final
    except KeyboardInterrupt as error:
        raise InterruptedRunError(f"{recipe.name}: stopped; nothing was registered and no files are left") from error
    reporter.phase("registering")
    try:
        version = _register(recipe, registry, final, finished.metrics, parent)
    except LoraryError:
        reporter.note(f"the trained adapter is in {final}; put it into a registry with: lorary import {final}")
        raise
    reporter.phase("done")
    return version


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


def run(prepared: Prepared, checkpoints: Path, reporter: Reporter) -> Finished:
    """Measure the untrained model, train, and measure again. Raises as :func:`train`."""
    # Only here, so that a run that ends with its data's mistakes doesn't wait for the trainers' imports.
    from lorary.training.fitting.fit import fit
    from lorary.training.report.build import build_report

    recipe, task, model, test = prepared.recipe, prepared.task, prepared.model, prepared.test
    device = next(model.parameters()).device
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)

    def answers(model: Any) -> list[Any]:
        return task.outcomes(model, test, prepared.base.tokenizer, recipe.training.batch_size)

    reporter.phase("measuring untrained")
    metrics = {"untrained": task.metrics(answers(model), test.golds)}
    majority = task.majority(prepared.data.train, test.golds)
    if majority is not None:
        metrics["majority"] = majority
    reporter.phase("training")
    started = time.perf_counter()
    fitted = fit(
        model, prepared.base.tokenizer, task, prepared.train, prepared.validation, recipe,
        folder=checkpoints, reporter=reporter,
    )  # fmt: skip
    seconds = time.perf_counter() - started
    reporter.phase("measuring")
    prepared = prepared.settled()
    model = prepared.model
    outcomes = answers(model)
    metrics["test"] = task.metrics(outcomes, test.golds)
    _note_no_gain(task, metrics, reporter)
    rows = test.head(ROWS)
    golden_rows = choose_rows([feature["input_ids"] for feature in test.features])
    trained = Trained(
        tensors=adapter_tensors(model),
        golden_rows=tuple(tuple(row) for row in golden_rows),
        golden=tuple(condense(task.name, logits) for logits in token_logits(model, golden_rows)),
        numerics=numerics_of(model, recipe),
        provenance=provenance(prepared, fitted, seconds, reporter),
    )
    # One row at a time, as the gate asks for them: on an 8-bit base a row's logits depend on its batch mates.
    found = task.outcomes(model, rows, prepared.base.tokenizer, batch_size=1)
    report = None
    if recipe.report.write:
        report = build_report(prepared, fitted, metrics, outcomes, trained.provenance)
    return Finished(prepared, trained, metrics, rows, task.metrics(found, rows.golds), report)


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


def _note_no_gain(task: Task, metrics: Mapping[str, Metrics], reporter: Reporter) -> None:
    """Say so where training didn't help: the adapter is valid, but nobody should have to find that out in use."""
    name, sign = task.main_metric, -1 if lower_is_better(task.main_metric) else 1
    trained = metrics["test"][name]
    for split in ("untrained", "majority"):
        other = metrics.get(split, {}).get(name)
        if other is not None and sign * trained <= sign * other:
            reporter.note(f"no better than {split} on the held-out rows: {name} {trained:.4g} against {other:.4g}")
