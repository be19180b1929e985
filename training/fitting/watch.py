"""What is looked at while a run goes on: the bar, and a run that has gone wrong."""

from __future__ import annotations

import math
from typing import Any

from transformers import TrainerCallback

from lorary.hub.errors import TrainingError
from lorary.training.fitting.step_rows import StepRows
from lorary.training.progress import Reporter

MOST_OVERFLOWS = 20
"""How many steps in a row float16's gradients may overflow while their scale is found."""


class Watch(TrainerCallback):
    """Moves the bar, and stops a run that has gone wrong at the step where it did."""

    def __init__(self, reporter: Reporter, rows: StepRows) -> None:
        self.reporter = reporter
        self.rows = rows
        self._overflows = 0

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, model: Any = None, **_: Any
    ) -> None:
        """Called for each step, since ``logging_steps`` is 1.

        Raises:
            TrainingError: the loss or the gradients aren't numbers; with the step's rows and the likely causes.
        """
        logs = logs or {}
        if "loss" not in logs:
            return
        loss, gradients = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
        # float16's scaler leaves out steps whose gradients overflow, and scales the next ones less.
        self._overflows = 0 if math.isfinite(gradients) else self._overflows + 1
        overflowed = self._overflows > (MOST_OVERFLOWS if args.fp16 else 0)
        if not math.isfinite(loss) or overflowed:
            name, value = ("loss", loss) if not math.isfinite(loss) else ("grad_norm", gradients)
            places = self.rows.places()
            raise TrainingError(
                f"the {name} became {value} at step {state.global_step} of {state.max_steps}, "
                f"learning rate {logs.get('learning_rate', 0.0):.3g}"
                + (f", on {places}" if places else "")
                + f". Likely causes: {'; '.join(self._causes(args, state, model))}"
            )
        self.reporter.step(state.global_step, state.max_steps, loss)

    def _causes(self, args: Any, state: Any, model: Any) -> list[str]:
        """The likeliest first: what the rows themselves show, then the settings."""
        causes = self.rows.oddities()
        if args.fp16:
            causes.append("float16 holds no number above 65504: use dtype: bfloat16 or float32")
        causes.append(
            f"too large a step: lower training.learning_rate ({args.learning_rate:g}), or raise training.warmup"
        )
        pretrained = model is not None and any(not parameter.requires_grad for parameter in model.parameters())
        if pretrained and state.global_step == 1 and not self.rows.oddities():
            causes.append("at the first step also a base whose weights are damaged")
        return causes

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """A validation loss that isn't a number would silently keep the first epoch."""
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss became {loss} at step {state.global_step}; lower the learning rate"
            )
