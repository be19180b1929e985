"""The task's metric on validation rows, each time the trainer looks at their loss."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from lorary.hub.metrics import lower_is_better
from lorary.training.data import Note
from lorary.training.fitting.memory_fallback import in_smaller_batches
from lorary.training.precision import evaluating
from lorary.training.tasks.base import Task
from lorary.training.tasks.rows.encoded import Encoded

ROWS = 256
"""The most validation rows that the metric is measured on, where it decides nothing."""

_TIE = 1e-9
"""How little of the loss settles which of two epochs with the same metric is the better one."""


class ValidationMetric(TrainerCallback):
    """Puts the main metric beside the validation loss in the trainer's log, as ``eval_metric``.

    Args:
        rows: the validation rows; :data:`ROWS` of them are measured, all where the metric decides.
        decides: the kept epoch is the best by this metric, and of those that are equal in it, as most are on few rows,
            the one with the least loss.
    """

    def __init__(
        self, model: Any, task: Task, rows: Encoded, tokenizer: Any, batch_size: int, note: Note, *, decides: bool
    ) -> None:
        asked = rows if decides else rows.head(ROWS)

        def in_batches(size: int) -> list[Any]:
            return task.outcomes(model, asked, tokenizer, size)

        def measure() -> list[Any]:
            with evaluating(model):
                return in_smaller_batches(in_batches, batch_size, note)

        self._measure = measure
        self._task, self._golds, self._decides = task, asked.golds, decides

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """The log's last entry is that of the validation loss; the trainer chooses the best epoch by ``metrics``."""
        value = state.log_history[-1]["eval_metric"] = self._task.main_score(self._measure(), self._golds)
        if self._decides:
            worse = 1 if lower_is_better(self._task.main_metric) else -1
            metrics["eval_metric"] = value + worse * _TIE * metrics["eval_loss"]
