"""Which of two ways makes a product faster on this device: measured where sizes are seen first, and kept.

PyTorch's products are also the kernel's check: one that fails, or gives other numbers, isn't used.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from types import MappingProxyType
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lorary.adapters.kernel.on_gpu import Plan
    from lorary.adapters.layer.products import Products
    from lorary.adapters.layer.slots import SiteView

_RUNS, _IN_A_ROW = 5, 8
_MEASURED: dict[Kind, Measured] = {}
_LOCK = threading.Lock()

Kernel = Callable[[torch.Tensor], None]
"""Adds the products of an input that it knows to its argument, in place."""


@dataclass(frozen=True)
class Kind:
    """Products that take about the same time: of one site's sizes, vectors and blocks to the next power of two."""

    device: torch.device
    dtype: torch.dtype
    inputs: int
    outputs: int
    rank: int
    vectors: int
    blocks: int
    most: int

    @classmethod
    def of(cls, view: SiteView, rank: int, plan: Plan) -> Kind:
        """That of a plan's vectors at a site."""
        (_, inputs, _), outputs = view.a.shape, view.b.shape[-1]
        return cls(
            view.a.device, view.a.dtype, inputs, outputs, rank,
            1 << (plan.places - 1).bit_length(), 1 << (plan.blocks - 1).bit_length(), plan.most,
        )  # fmt: skip


@dataclass(frozen=True)
class Measured:
    """Seconds of one product, medians. ``unused``: why the kernel can't be used, whatever it takes."""

    in_torch: float
    in_kernel: float
    unused: str = ""

    @property
    def faster(self) -> bool:
        """Is it the kernel that is faster?"""
        return not self.unused and self.in_kernel < self.in_torch


def measured() -> Mapping[Kind, Measured]:
    """All that was measured in this process."""
    return MappingProxyType(_MEASURED)


def faster(kind: Kind, kernel: Kernel, call: Products, path: str, x: torch.Tensor, out: torch.Tensor) -> bool | None:
    """Is ``kernel`` faster than what PyTorch makes of ``x`` at ``path`` in ``call``, and does it give the same?

    None where that isn't known and can't be found out now: a graph is captured, another thread measures, memory is
    short, or ``out`` isn't finite.
    """
    if kind not in _MEASURED:
        if (x.is_cuda and torch.cuda.is_current_stream_capturing()) or not _LOCK.acquire(blocking=False):
            return None
        try:
            if not _measure(kind, kernel, call, path, x, out):
                return None
        except torch.OutOfMemoryError:
            return None
        finally:
            _LOCK.release()
    return _MEASURED[kind].faster


def _measure(kind: Kind, kernel: Kernel, call: Products, path: str, x: torch.Tensor, out: torch.Tensor) -> bool:
    theirs, ours = call.add_in_torch(path, x, out.clone()), out.clone()
    if not theirs.isfinite().all():
        return False
    try:
        kernel(ours)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # of a compiler, a driver, a device with too little room
        _MEASURED[kind] = Measured(0.0, 0.0, f"{type(error).__name__}: {error}")
        return True
    apart, allowed = float((ours - theirs).abs().max()), _allowed(out, theirs)
    if not apart <= allowed:  # NaN is neither less nor more
        _MEASURED[kind] = Measured(0.0, 0.0, f"it is {apart:.1e} off, more than {allowed:.1e}")
        return True
    with_a = _seconds(lambda: call.add_in_torch(path, x.view(x.shape), theirs), x)
    without = _seconds(lambda: call.add_in_torch(path, x, theirs), x)
    # Modules that are given the same input share the product with A, each in equal parts.
    in_torch = without + max(0.0, with_a - without) / len(call.members(path))
    _MEASURED[kind] = Measured(in_torch, _seconds(lambda: kernel(ours), x))
    return True


def _allowed(out: torch.Tensor, theirs: torch.Tensor) -> float:
    """How far apart two right results may be: by rounding, PyTorch's perhaps to TF32."""
    rounding = 4 * torch.finfo(out.dtype).eps
    return max(1e-3, rounding) * float((theirs - out).abs().max()) + rounding * float(theirs.abs().max())


def _seconds(run: Callable[[], object], x: torch.Tensor) -> float:
    """What one of several runs in a row takes."""
    found = []
    for _ in range(_RUNS):
        _wait(x)
        started = time.perf_counter()
        for _ in range(_IN_A_ROW):
            run()
        _wait(x)
        found.append((time.perf_counter() - started) / _IN_A_ROW)
    return median(found)


def _wait(x: torch.Tensor) -> None:
    if x.is_cuda:
        torch.cuda.current_stream(x.device).synchronize()
