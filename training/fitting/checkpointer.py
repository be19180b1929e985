"""When a run writes checkpoints: after each epoch, every so many steps or minutes, and when it is asked to stop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from lorary.hub.errors import InterruptedRunError
from lorary.training.checkpoints import commit, prune
from lorary.training.distributed import Group
from lorary.training.interrupt import Stops

MINUTES = 10.0
"""The longest that a run goes on without a checkpoint, whatever the recipe says."""


class Checkpointer(TrainerCallback):
    """Asks the trainer for checkpoints, makes them count, and removes those that are no longer needed.

    Args:
        folder: where the trainer writes them.
        every: steps between checkpoints inside an epoch; None leaves it to :data:`MINUTES`.
        stops: asked after each step.
        seconds: what the run has taken until this process went on with it.
        group: the processes that train together; the first one keeps the folder.
    """

    def __init__(self, folder: Path, every: int | None, stops: Stops, seconds: float, group: Group) -> None:
        self.folder = folder
        self.every = every
        self.stops = stops
        self.seconds = seconds
        self.group = group
        self._started = self._saved = time.monotonic()

    @property
    def elapsed(self) -> float:
        """Seconds of training, those of the processes before this one included."""
        return self.seconds + time.monotonic() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The best epoch's checkpoint is beside this run's others, wherever the folder was when it was written."""
        self._started = self._saved = time.monotonic()
        if state.best_global_step:
            state.best_model_checkpoint = str(self.folder / f"checkpoint-{state.best_global_step}")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint, but not at an epoch's last step: the one after the epoch's evaluation holds more."""
        stopping = self._stopping(args)
        if state.epoch.is_integer() or state.global_step >= state.max_steps:
            return
        due = self.group.any(time.monotonic() - self._saved > 60 * MINUTES, args.device)
        due |= self.every is not None and state.global_step % self.every == 0
        control.should_save = due or stopping

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Make the new checkpoint count, and end the run here if that was asked for.

        Raises:
            InterruptedRunError: the user has asked to stop.
        """
        folder = self.folder / f"checkpoint-{state.global_step}"
        self.group.wait()  # each process writes the state of its own generators
        if self.group.first:
            commit(folder, self.elapsed)
            prune(self.folder, {folder, self.folder / f"checkpoint-{state.best_global_step}"})
        self.group.wait()
        self._saved = time.monotonic()
        if self._stopping(args):
            raise InterruptedRunError(f"stopped after step {state.global_step} of {state.max_steps}")

    def _stopping(self, args: Any) -> bool:
        """Was any process asked to stop? Signals don't reach all of them at one moment, and all have to stop at one."""
        if not self.group.any(self.stops.requested, args.device):
            return False
        self.stops.request()
        return True
