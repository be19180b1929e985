"""Overfitting: how far the training rows are ahead of the held-out ones, and whether that is worth a warning."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from lorary.hub.metrics import lower_is_better
from lorary.training.data import Note
from lorary.training.fitting.memory_fallback import in_smaller_batches
from lorary.training.tasks.base import Metrics

if TYPE_CHECKING:
    from lorary.training.fitting.loop import Fitted
    from lorary.training.prepare import Prepared

ROWS = 200
"""The most training rows that the metric is measured on."""

LARGE = 0.1
"""A gap of a metric that is a share, from which on it is a warning, if it is two standard errors wide as well."""

LARGE_RATIO = 1.25
"""A held-out loss or perplexity so many times the training rows' is a warning."""

RISEN = 1.2
"""A last validation loss so many times the lowest one is a warning, while the training loss went on falling."""


def find_gap(prepared: Prepared, held_out: Metrics, fitted: Fitted, note: Note) -> dict[str, Any] | None:
    """Measure the main metric on training rows too, and tell ``note`` of a large gap.

    Tasks that are scored by generating aren't asked, since that takes as long as the evaluation itself.

    Returns:
        The metric's name, its values on ``train`` and ``test`` rows, and how many training rows were asked.
    """
    _note_rise(fitted, note)
    task, name = prepared.task, prepared.task.main_metric
    if not task.scored_in_one_pass or name not in held_out:
        return None
    count = len(prepared.train.examples)
    rows = prepared.train.pick(range(0, count, -(-count // ROWS)))

    def in_batches(size: int) -> list[Any]:
        return task.outcomes(prepared.model, rows, prepared.base.tokenizer, size)

    found = in_smaller_batches(in_batches, prepared.recipe.training.batch_size, note)
    train, test = task.metrics(found, rows.golds).get(name), held_out[name]
    if train is None:
        return None
    if _is_large(name, train, test, len(prepared.test.examples)):
        note(
            f"overfitting: {name} is {train:.4g} on training rows and {test:.4g} on held-out rows; more rows, fewer "
            "epochs, a smaller lora.rank, more lora.dropout or training.weight_decay may narrow the gap"
        )
    return {"metric": name, "train": train, "test": test, "rows": len(rows.examples)}


def _is_large(name: str, train: float, test: float, count: int) -> bool:
    if lower_is_better(name):
        return test > LARGE_RATIO * train
    error = math.sqrt(test * (1 - test) / count) if 0 <= test <= 1 else 0.0
    return train - test > max(LARGE, 2 * error)


def _note_rise(fitted: Fitted, note: Note) -> None:
    looks = [entry for entry in fitted.history if "eval_loss" in entry]
    if len(looks) < 2:
        return
    # The kept epoch's, which is the lowest one, but for AdaLoRA's while it has too many ranks.
    best = next((entry for entry in looks if entry["epoch"] == fitted.best_epoch), looks[0])
    lowest, last = best["eval_loss"], looks[-1]["eval_loss"]
    before = [loss for step, loss in fitted.curve if step <= best["step"]]
    after = [loss for step, loss in fitted.curve if step > best["step"]]
    if not before or not after or last <= RISEN * lowest:
        return
    # The losses around the turn: of the first epoch's the run remembers nothing.
    then, now = (sum(losses) / len(losses) for losses in (before[-len(after) :], after))
    if now < then:
        note(
            f"after epoch {best['epoch']:g}, which is kept, the validation loss rose from {lowest:.3g} to {last:.3g} "
            f"while the training loss fell from {then:.3g} to {now:.3g}: more epochs only overfit"
        )
