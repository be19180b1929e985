"""How a model is asked: in which mode, and in the arithmetic of a base that isn't float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def precision(model: Any) -> Any:
    """Autocast where the base isn't float32: float32 adapters and heads then work with its activations."""
    dtype = base_dtype(model)
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No dropout; the mode is put back. Set module by module, so once around many batches and not for each of them."""
    training = model.training
    if training:
        model.eval()
    try:
        yield
    finally:
        if training:
            model.train()


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """For a pass of a model that is asked, not trained: no dropout, no gradients, in its base's arithmetic."""
    with evaluating(model), torch.no_grad(), precision(model):
        yield


def base_dtype(model: Any) -> torch.dtype:
    """The dtype of the frozen part: what isn't quantized, such as embeddings and norms."""
    frozen = (p.dtype for p in model.parameters() if not p.requires_grad and p.dtype.is_floating_point)
    return next(frozen, torch.float32)
