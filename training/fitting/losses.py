"""Losses that weigh classes or smooth labels, and the trainer that takes their means over whole steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional
from transformers import Trainer

IGNORED = -100  # the label of positions that are no target


class Loss(Protocol):
    """What ``Trainer`` takes as ``compute_loss_func``, and what its mean over a step's batches is divided by."""

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """The loss of one batch: its mean, or its sum divided by ``num_items_in_batch``."""

    def share(self, labels: torch.Tensor) -> torch.Tensor:
        """A batch's share of that divisor."""


@dataclass(frozen=True)
class CrossEntropy:
    """``torch.nn.functional.cross_entropy`` with a weight for each class and smoothed labels.

    Its mean divides by the sum of the targets' weights, as torch's does, over all batches of a step.
    """

    weight: tuple[float, ...] | None
    smoothing: float

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Logits [rows, classes] or [rows, tokens, classes], labels without the last dimension."""
        logits = outputs["logits"].float()
        weight = None if self.weight is None else torch.tensor(self.weight, device=logits.device)
        loss = functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten().to(logits.device),
            weight=weight,
            ignore_index=IGNORED,
            reduction="mean" if num_items_in_batch is None else "sum",
            label_smoothing=self.smoothing,
        )
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def share(self, labels: torch.Tensor) -> torch.Tensor:
        """The weights of the batch's targets, summed up."""
        targets = labels[labels != IGNORED]
        if self.weight is None:
            return torch.tensor(float(targets.numel()), device=labels.device)
        return torch.tensor(self.weight, device=labels.device)[targets].sum()


@dataclass(frozen=True)
class BinaryCrossEntropy:
    """``binary_cross_entropy_with_logits`` with ``pos_weight``: for each label, what its presence weighs."""

    weight: tuple[float, ...]

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Logits and labels (0 or 1), both [rows, labels]."""
        logits = outputs["logits"].float()
        loss = functional.binary_cross_entropy_with_logits(
            logits,
            labels.to(logits),
            pos_weight=torch.tensor(self.weight, device=logits.device),
            reduction="mean" if num_items_in_batch is None else "sum",
        )
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def share(self, labels: torch.Tensor) -> torch.Tensor:
        """The number of yes-or-no decisions in the batch."""
        return torch.tensor(float(labels.numel()), device=labels.device)


@dataclass(frozen=True)
class SquaredError:
    """``mse_loss`` between logits and standardised numbers."""

    mean: float
    deviation: float

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Logits [rows, 1], labels [rows] as the data have them."""
        logits = outputs["logits"].float().squeeze(-1)
        targets = (labels.to(logits) - self.mean) / self.deviation
        loss = functional.mse_loss(logits, targets, reduction="mean" if num_items_in_batch is None else "sum")
        return loss if num_items_in_batch is None else loss / num_items_in_batch

    def share(self, labels: torch.Tensor) -> torch.Tensor:
        """The number of rows."""
        return torch.tensor(float(labels.numel()), device=labels.device)


class LossTrainer(Trainer):
    """``Trainer`` with a loss of one's own; a step of several batches, or processes, has the loss of one large batch.

    transformers counts a step's targets for that, which is the divisor of an unweighted mean; weights have another.
    """

    def __init__(self, loss: Loss, **settings: Any) -> None:
        super().__init__(compute_loss_func=loss, **settings)
        self._share = loss.share

    def _get_num_items_in_batch(self, batch_samples: Sequence[Any], device: torch.device) -> torch.Tensor | None:
        if not batch_samples:
            return None
        total = torch.stack([self._share(batch["labels"]) for batch in batch_samples]).sum().to(device)
        if self.args.average_tokens_across_devices and self.accelerator.num_processes > 1:
            total = self.accelerator.gather(total).sum()
        return total
