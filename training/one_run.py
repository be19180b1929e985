"""One run from its first step to its checked files: measured, trained, measured again, and held against what loads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters import Backbone
from lorary.adapters.proving.golden import choose_rows, condense
from lorary.hub.metrics import lower_is_better
from lorary.hub.registry import Registry
from lorary.training.distributed import ALONE, Group
from lorary.training.fitting.overfitting import find_gap
from lorary.training.fitting.padding import padding_hint
from lorary.training.gate import gate
from lorary.training.interrupt import Stops
from lorary.training.model import take_off
from lorary.training.precision import evaluating
from lorary.training.prepare import Prepared
from lorary.training.progress import Reporter
from lorary.training.provenance import provenance
from lorary.training.report.content import Report
from lorary.training.report.page import write_pages
from lorary.training.save import (
    Trained,
    adapter_tensors,
    numerics_of,
    save,
)
from lorary.training.tasks import Encoded, Task
from lorary.training.tasks.base import Metrics
from lorary.training.working_folder import git_state

if TYPE_CHECKING:
    from lorary.training.fitting.loop import Fitted


@dataclass(frozen=True)
class Finished:
    """A run after its last step: ``prepared`` holds the trained model, in the form that is saved.

    ``expected`` are the trained model's metrics on the gate's rows, ``outcomes`` what it makes of each held-out row;
    ``seen`` of each validation row, where the task asked for that.
    """

    prepared: Prepared
    trained: Trained
    metrics: Mapping[str, Metrics]
    rows: Encoded
    expected: Metrics
    report: Report | None
    outcomes: Sequence[Any] = ()
    best_epoch: float | None = None
    seen: Sequence[Any] = ()


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

    git = git_state()  # before the hours in which it may change
    recipe, task, model, test = prepared.recipe, prepared.task, prepared.model, prepared.test
    device = next(model.parameters()).device
    if device.type == "cuda":
        for index in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(index)
    reporter.phase("measuring untrained")
    with _alone(prepared):
        metrics = {"untrained": task.metrics(_answers(prepared, test, reporter), test.golds)}
        metrics |= task.baselines(prepared.data.train, prepared.train, test, prepared.base.tokenizer)
    for line in task.caveats(test.golds):
        reporter.note(line)
    # What a base in shards takes can't be told from one that is whole.
    estimate = predict(prepared) if recipe.report.write and prepared.shards is None else None
    hint = padding_hint([len(feature["input_ids"]) for feature in prepared.train.features], recipe)
    if hint:
        reporter.note(hint)
    reporter.phase("training")
    with task.scaled(model, prepared.train, prepared.base.tokenizer):
        fitted = fit(
            model, prepared.base.tokenizer, task, prepared.train, prepared.validation, recipe,
            folder=checkpoints, reporter=reporter, stops=stops or Stops(), group=group,
        )  # fmt: skip
    reporter.phase("measuring")
    with _alone(prepared):
        return _measure(prepared.settled(), fitted, metrics, estimate, git, reporter)


def _measure(
    prepared: Prepared, fitted: Fitted, metrics: dict[str, Metrics], estimate: dict[str, int] | None,
    git: Mapping[str, Any] | None, reporter: Reporter,
) -> Finished:  # fmt: skip
    """What the trained model, in the form that is saved, makes of the held-out rows; added to ``metrics``."""
    from lorary.training.report.build import build_report

    recipe, task, model, test = prepared.recipe, prepared.task, prepared.model, prepared.test
    seen: Sequence[Any] = ()
    if task.decides:
        validation = prepared.validation
        before = _answers(prepared, validation, reporter) if validation else []
        seen = task.decide(before, validation.golds if validation else (), reporter.note)
    outcomes = _answers(prepared, test, reporter)
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
        provenance=provenance(prepared, fitted, fitted.seconds, estimate, reporter, git)
        | ({"gap": gap} if gap else {}),
    )
    # One row at a time, as the gate asks for them: on an 8-bit base a row's logits depend on its batch mates.
    found = _answers(prepared, rows, reporter, size=1)
    report = None
    if recipe.report.write:
        report = build_report(prepared, fitted, metrics, outcomes, trained.provenance)
    expected = task.metrics(found, rows.golds)
    return Finished(prepared, trained, metrics, rows, expected, report, outcomes, fitted.best_epoch, seen)


def _answers(prepared: Prepared, rows: Encoded, reporter: Reporter, size: int | None = None) -> list[Any]:
    """What the model makes of each row now, ``size`` rows at a time; by default as many as it is trained on."""
    from lorary.training.fitting.memory_fallback import in_smaller_batches

    def in_batches(size: int) -> list[Any]:
        return prepared.task.outcomes(prepared.model, rows, prepared.base.tokenizer, size)

    with evaluating(prepared.model):
        return in_smaller_batches(in_batches, size or prepared.recipe.training.batch_size, reporter.note)


def _alone(prepared: Prepared) -> AbstractContextManager[None]:
    """For what the first process does with the model while the others wait, or lend it their parts of the base."""
    return prepared.shards.borrowed() if prepared.shards else nullcontext()


def save_run(finished: Finished, files: Path) -> None:
    """Write a finished run's adapter and report into ``files``."""
    save(finished.prepared, finished.trained, files)
    if finished.report:
        write_pages(finished.report, files)


def check(finished: Finished, files: Path, registry: Registry) -> None:
    """Take the adapter off the base in memory, load the saved files onto it, and compare.

    Raises:
        GateError: they don't give back what was trained.
    """
    prepared = finished.prepared
    plain = take_off(prepared.model, prepared.base)
    with _alone(prepared):
        backbone = Backbone.from_model(
            plain, prepared.base.bare.tokenizer, identity=prepared.base.identity, slots=1, registry=registry
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
