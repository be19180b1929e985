"""What is looked at while a run goes on: the bar, and a run that has gone wrong."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from lorary.hub.errors import TrainingError
from lorary.training.progress import Reporter


class Watch(TrainerCallback):
    """Moves the bar, and stops a run that has gone wrong at the step where it did."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called for each step, since ``logging_steps`` is 1."""
        logs = logs or {}
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise TrainingError(
                    f"the {name} became {logs[name]} at step {state.global_step} of {state.max_steps}; "
                    "lower training.learning_rate, or raise training.warmup"
                )
        self.reporter.step(state.global_step, state.max_steps, loss)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """A validation loss that isn't a number would silently keep the first epoch."""
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss became {loss} at step {state.global_step}; lower the learning rate"
            )
