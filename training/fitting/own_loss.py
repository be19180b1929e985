"""A trainer for tasks whose model has no loss of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from transformers import Trainer


class OwnLossTrainer(Trainer):
    """transformers' ``Trainer`` with a loss from a function of model and batch, a mean over the batch."""

    def __init__(self, loss: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor], **settings: Any) -> None:
        super().__init__(**settings)
        self._loss = loss
        # Accumulated batches are then averaged here; a body that takes any keyword seems to do that by itself.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        """The function's loss; the outputs, which nobody asks for, are empty."""
        loss = self._loss(model, inputs)
        return (loss, {}) if return_outputs else loss
