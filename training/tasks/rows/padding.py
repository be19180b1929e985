"""Padding on the right, as ``predict`` pads: a token's position then doesn't depend on its batch mates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lorary.training.tasks.rows.encoded import Feature


def pad_right(tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
    """A collator with the tokenizer's padding token."""

    def collate(features: list[Feature]) -> dict[str, torch.Tensor]:
        return dict(tokenizer.pad(features, padding_side="right", return_tensors="pt"))

    return collate
