"""The arithmetic of a model whose base isn't float32."""

from __future__ import annotations

from typing import Any

import torch


def precision(model: Any) -> Any:
    """Autocast where the base isn't float32: float32 adapters and heads then work with its activations."""
    dtype = base_dtype(model)
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def base_dtype(model: Any) -> torch.dtype:
    """The dtype of the frozen part: what isn't quantized, such as embeddings and norms."""
    frozen = (p.dtype for p in model.parameters() if not p.requires_grad and p.dtype.is_floating_point)
    return next(frozen, torch.float32)
