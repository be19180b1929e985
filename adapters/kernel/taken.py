"""Which tensors kernels can be given: those whose products nobody but the caller has to see."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

try:  # PyTorch's own names, the only ones for who listens: without them no kernel makes anything
    from torch._C import _len_torch_dispatch_stack
    from torch._C._functorch import peek_interpreter_stack

    ASKABLE = hasattr(forward_ad, "_current_level")
except ImportError:
    ASKABLE = False


def takes(x: torch.Tensor, out: torch.Tensor, dtype: torch.dtype) -> bool:
    """Are both plain, contiguous tensors of ``dtype``, in a call that nobody traces, transforms or differentiates?"""
    return (
        _plain(x, dtype)
        and _plain(out, dtype)
        and not torch.is_grad_enabled()
        and forward_ad._current_level < 0  # whose tangents no_grad leaves alone
        and peek_interpreter_stack() is None  # torch.func
        and not _len_torch_dispatch_stack()
        and not torch.jit.is_tracing()
    )


def vectors_in(x: torch.Tensor, out: torch.Tensor, inputs: int, outputs: int) -> int:
    """How many vectors of ``inputs`` numbers ``x`` [rows, ..., inputs] has; 0 where ``out`` isn't as many of them."""
    shape = x.shape
    if len(shape) < 2 or len(shape) != out.ndim or shape[-1] != inputs:
        return 0
    vectors = x.numel() // inputs
    return vectors if out.numel() == vectors * outputs else 0


def _plain(tensor: torch.Tensor, dtype: torch.dtype) -> bool:
    return type(tensor) is torch.Tensor and tensor.dtype is dtype and tensor.is_contiguous() and not tensor.is_neg()
