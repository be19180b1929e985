"""Losses in place of a model's own: with weights for classes, smoothed labels, or standardised numbers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

IGNORED = -100
"""The label of a token that nothing is learned from, as torch's ``cross_entropy`` has it."""


class Loss(Protocol):
    """What ``Trainer`` takes as ``compute_loss_func``: the mean over a batch, and what that mean is over."""

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """The mean loss of one batch; :mod:`lorary.training.fitting.normalise` weighs the batches of a step."""

    def share(self, labels: torch.Tensor) -> torch.Tensor:
        """What the mean divides by: how much a batch counts beside the others of its step."""


@dataclass(frozen=True)
class CrossEntropy:
    """``torch.nn.functional.cross_entropy`` with a weight for each class and smoothed labels.

    Its mean divides by the sum of the targets' weights.
    """

    weight: tuple[float, ...] | None
    smoothing: float

    def __call__(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        """Logits [rows, classes] or [rows, tokens, classes], labels without the last dimension."""
        logits = outputs["logits"].float()
        weight = None if self.weight is None else torch.tensor(self.weight, device=logits.device)
        return functional.cross_entropy(
            logits.flatten(0, -2),
            labels.flatten().to(logits.device),
            weight=weight,
            ignore_index=IGNORED,
            label_smoothing=self.smoothing,
        )

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
        return functional.binary_cross_entropy_with_logits(
            logits,
            labels.to(logits),
            pos_weight=torch.tensor(self.weight, device=logits.device),
        )

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
        return functional.mse_loss(logits, targets)

    def share(self, labels: torch.Tensor) -> torch.Tensor:
        """The number of rows."""
        return torch.tensor(float(labels.numel()), device=labels.device)
