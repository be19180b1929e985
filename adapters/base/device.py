"""Where a model runs and in which dtype, when the caller doesn't say."""

from __future__ import annotations

import torch

from lorary.hub.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, else the first CUDA device, else the CPU.

    Raises:
        UsageError: a CUDA device was asked for and there is none.
    """
    if device is None:
        return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"unknown device {device!r}; expected 'cpu', 'cuda' or 'cuda:0'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch finds no CUDA device; use 'cpu'")
    return torch.device("cuda", chosen.index or 0) if chosen.type == "cuda" else chosen


def pick_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """The dtype asked for, else float32 on the CPU and bfloat16 on CUDA (float16 on cards without bfloat16).

    Raises:
        UsageError: none of :data:`DTYPES`.
    """
    if isinstance(dtype, torch.dtype):
        dtype = dtype_name(dtype)
    if dtype is not None:
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise UsageError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
        return DTYPES[dtype]
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``, and so on."""
    return str(dtype).removeprefix("torch.")
