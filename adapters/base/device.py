"""Where a model runs and in which dtype, when the caller doesn't say."""

from __future__ import annotations

import torch

from lorary.hub.errors import UsageError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str | torch.device | None = None) -> torch.device:
    """The device asked for, else CUDA's, else the CPU.

    CUDA's is the first one, unless this process has chosen another one for itself, as each of several that train
    together does.

    Raises:
        UsageError: a CUDA device was asked for and there is none, or not as many.
    """
    if device is None:
        return _own_gpu() if torch.cuda.is_available() else torch.device("cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"unknown device {device!r}; expected 'cpu', 'cuda' or 'cuda:0'") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was asked for, but torch finds no CUDA device; use 'cpu'")
    if chosen.type == "cuda" and chosen.index is not None and chosen.index >= (count := torch.cuda.device_count()):
        there = "one CUDA device; use 'cuda:0'" if count == 1 else f"{count}; use 'cuda:0' to 'cuda:{count - 1}'"
        raise UsageError(f"device {str(device)!r} was asked for, but torch finds {there}")
    return _own_gpu() if chosen.type == "cuda" and chosen.index is None else chosen


def _own_gpu() -> torch.device:
    # Who has chosen one has initialised CUDA, which isn't worth doing only to ask.
    return torch.device("cuda", torch.cuda.current_device() if torch.cuda.is_initialized() else 0)


def pick_dtype(device: torch.device, dtype: str | torch.dtype | None = None) -> torch.dtype:
    """The dtype asked for, else float32 on the CPU and bfloat16 on CUDA (float16 on cards without bfloat16).

    Raises:
        UsageError: none of :data:`DTYPES`.
    """
    if dtype is not None:
        return named_dtype(dtype)
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def named_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``torch.float32`` for ``"float32"``, and for itself.

    Raises:
        UsageError: none of :data:`DTYPES`.
    """
    if isinstance(dtype, torch.dtype):
        dtype = dtype_name(dtype)
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise UsageError(f"unknown dtype {dtype!r}; expected one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` for ``torch.float32``, and so on."""
    return str(dtype).removeprefix("torch.")
