"""The task's metric on validation rows, each time the trainer looks at their loss."""

from __future__ import annotations

from typing import Any

from transformers import TrainerCallback

from lorary.training.data import Note
from lorary.training.fitting.memory_fallback import in_smaller_batches
from lorary.training.precision import evaluating
from lorary.training.tasks.base import Task
from lorary.training.tasks.encoded import Encoded

ROWS = 256
"""The most validation rows that the metric is measured on."""


class ValidationMetric(TrainerCallback):
    """Puts the main metric beside the validation loss in the trainer's log, as ``eval_metric``."""

    def __init__(self, model: Any, task: Task, rows: Encoded, tokenizer: Any, batch_size: int, note: Note) -> None:
        def in_batches(size: int) -> list[Any]:
            return task.outcomes(model, rows.head(ROWS), tokenizer, size)

        def measure() -> list[Any]:
            with evaluating(model):
                return in_smaller_batches(in_batches, batch_size, note)

        self._measure = measure
        self._task, self._golds = task, rows.head(ROWS).golds

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The log's last entry is that of the validation loss."""
        value = self._task.metrics(self._measure(), self._golds).get(self._task.main_metric)
        if value is not None:
            state.log_history[-1]["eval_metric"] = value
