"""Standardised targets for regression, folded into the head's last layer once it is trained.

Prices or word counts are far from what a fresh head answers, and a step of Adam's is as small for them as for scores
from 0 to 1. So the head learns numbers of mean 0 and variance 1, and its last layer, which is linear, then takes over
the mean and the deviation: the saved adapter answers with the number itself, on any loader. From then on it has to
compute in float32 (:mod:`lorary.adapters.heads.numbers`). A layer without a bias can't take over a mean
(:mod:`lorary.training.tasks.heads.level`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorary.adapters.heads.numbers import Float32Linear


@dataclass(frozen=True)
class Scale:
    """``number = standardised * deviation + mean``."""

    mean: float = 0.0
    deviation: float = 1.0

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Scale:
        """That of the training rows."""
        found = np.asarray(numbers, dtype=np.float64)
        return cls(float(found.mean()), float(found.std()))

    @property
    def with_mean(self) -> Scale:
        """For a layer that has the mean in its answers already: the numbers keep theirs."""
        return Scale(0.0, self.deviation)

    @property
    def from_zero(self) -> Scale:
        """For a layer that has to learn the mean: the numbers keep theirs, and are of the size 1."""
        return Scale(0.0, math.hypot(self.mean, self.deviation))

    def fold(self, layer: torch.nn.Linear) -> None:
        """From a layer that answers with standardised numbers to one that answers with the numbers."""
        with torch.no_grad():
            layer.weight.mul_(self.deviation)
            if layer.bias is not None:
                layer.bias.mul_(self.deviation).add_(self.mean)

    def unfold(self, layer: torch.nn.Linear) -> None:
        """The other way round."""
        with torch.no_grad():
            layer.weight.div_(self.deviation)
            if layer.bias is not None:
                layer.bias.sub_(self.mean).div_(self.deviation)


def last_layer(model: Any) -> Float32Linear | None:
    """The trained layer that a head's numbers come from, which computes in float32; None where there is none."""
    found = (module for module in model.modules() if isinstance(module, Float32Linear) and module.weight.requires_grad)
    return next(found, None)
