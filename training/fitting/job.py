"""What is fitted: an adapter for a task, or a whole model on a corpus; steps, checkpoints and stops are the same."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.training.data import Note
from lorary.training.fitting.memory_fallback import Batching
from lorary.training.pretraining.recipe import Pretraining
from lorary.training.recipe.sections import Training
from lorary.training.tasks.rows.encoded import Encoded

RunSettings = Training | Pretraining
"""The section ``training`` of a recipe of either kind."""


@dataclass(frozen=True)
class Job(ABC):
    """A model, the rows that it learns from, and those that choose the epoch.

    Attributes:
        model: is trained in place.
        train: the rows to learn.
        validation: the epoch that is the best on them is kept; None keeps the last one.
        training: the run's settings.
        advice: what to change when one row at a time is too much for the memory.
    """

    model: Any
    train: Encoded
    validation: Encoded | None
    training: RunSettings
    advice: str

    @abstractmethod
    def trainer(self, batching: Batching, folder: Path) -> Any:
        """A transformers ``Trainer`` whose checkpoints go to ``folder``."""

    @property
    def batch_counts(self) -> bool:
        """Does a row's loss depend on the other rows of its batch?"""
        return False

    @property
    def least_batch(self) -> int:
        """The rows without which a batch has nothing to teach."""
        return 1

    @abstractmethod
    def take(self, checkpoint: Path) -> None:
        """Give the model the weights of a checkpoint."""

    def notices(self) -> Sequence[str]:
        """What the trainer that was made has to tell the user."""
        return ()

    def callbacks(self, batching: Batching, note: Note) -> Sequence[Any]:
        """Callbacks of this kind of run, called before early stopping and checkpoints."""
        return ()

    def prepare(self, trainer: Any) -> None:  # noqa: B027 - most have nothing to do here
        """Called last before the first step."""

    def undo(self, trainer: Any) -> None:
        """Called after the last step, however it ended: take off what the trainer put around the model's forward."""
        trainer.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.model.__dict__.pop("forward", None)
        self.model.eval()
