"""Mixed rows on a GPU: in Triton where that was measured to be faster than PyTorch's batched products, and agrees."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch

from lorary.adapters.kernel.blocks import blocks_of
from lorary.adapters.kernel.build import SWITCH
from lorary.adapters.kernel.measured import Kind, faster
from lorary.adapters.kernel.taken import ASKABLE, takes, vectors_in

if TYPE_CHECKING:
    from lorary.adapters.layer.products import Products
    from lorary.adapters.layer.slots import Arena, SiteView

MOST_RANK = 128  # a larger one needs more of a processor's own memory than there is
_ON = ("cuda",)
_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_MANY = 32  # vectors of each slot, from which on blocks are large
_PLANS = 16

AddRows = Callable[["SiteView", int, "Plan", torch.Tensor, torch.Tensor], None]


@dataclass(frozen=True, eq=False)
class Plan:
    """A call's vectors in ``blocks`` blocks, as :class:`~lorary.adapters.kernel.blocks.Blocks` on the device.

    ``places``: how many vectors are in blocks. ``most``: how many one may have.
    """

    blocks: int
    places: int
    most: int
    rows: torch.Tensor
    start: torch.Tensor
    slot: torch.Tensor

    @classmethod
    def of(cls, call: Products, rows: int, each: int, device: torch.device, dtype: torch.dtype) -> Plan:
        """The plan for ``rows`` rows of a call with ``each`` vectors, one after the other."""
        slots = call.slots_of(rows)
        distinct = len(set(slots) - {0})
        many = (
            rows * each >= _MANY * distinct and dtype is not torch.float32
        )  # which takes long to compile in large ones
        most = 64 if many else 16
        made = blocks_of(slots, each, most)
        # In one copy, each part at an even place: for addresses that 16 bytes don't divide other code is compiled.
        parts = [made.rows, made.start, made.slot]
        sizes = [len(part) + len(part) % 2 for part in parts]
        whole = torch.zeros(sum(sizes), dtype=torch.long, device="cpu")
        for part, held in zip(whole.split(sizes), parts, strict=True):
            part[: len(held)] = held
        return cls(len(made.slot), len(made.rows), most, *whole.to(device).split(sizes))


@cache
def kernel() -> AddRows | None:
    """The function in Triton; None where it can't be had, or ``LORARY_KERNEL=off`` says that it isn't wanted."""
    if not ASKABLE or os.environ.get(SWITCH, "").lower() == "off" or find_spec("triton") is None:
        return None
    try:
        from lorary.adapters.kernel.triton_kernels import add_rows
    except Exception:  # whatever stops another release of Triton on this machine
        return None
    return add_rows


def kernel_on_gpu(arena: Arena) -> AddRows | None:
    """:func:`kernel` for an arena that it can read from; for others Triton isn't imported."""
    readable = arena.layout.dtype in _DTYPES and any(device.type in _ON for device in arena.layout.devices)
    return kernel() if readable else None


class MixedRowsOnGpu:
    """The products of one call's rows, of several adapters, in Triton.

    Args:
        kernel: the function in Triton.
        arena: the stacked weights.
        rank_at: the largest rank that the call's adapters have at a site, 0 where none acts.
    """

    def __init__(self, kernel: AddRows, arena: Arena, rank_at: Callable[[str], int]) -> None:
        self._kernel = kernel
        self._arena = arena
        self._rank_at = rank_at
        self._plans: dict[tuple[int, int, torch.device], Plan] = {}
        self._chosen: dict[tuple[str, Plan], bool] = {}

    def add(self, call: Products, path: str, x: torch.Tensor, out: torch.Tensor) -> bool:
        """As :meth:`MixedRows.add <lorary.adapters.kernel.mixed_rows.MixedRows.add>`, for tensors on a GPU.

        False, and nothing done, also where PyTorch's products are faster, by what was measured when sizes like these
        were seen first.
        """
        rank = self._rank_at(path)
        if not 0 < rank <= MOST_RANK:
            return False
        view = self._arena.views[path]
        device = view.a.device
        if device.type not in _ON or view.embedding or x.device != device or out.device != device:
            return False
        vectors = vectors_in(x, out, view.a.shape[1], view.b.shape[-1])
        if not vectors or not takes(x, out, view.a.dtype):
            return False
        plan = self._plan(call, x.shape[0], vectors, view)
        chosen = self._chosen.get((path, plan))
        if chosen is None:
            call.note(path, x)

            def kernel(out: torch.Tensor) -> None:
                self._run(view, rank, plan, x, out)

            chosen = plan.blocks > 0 and faster(Kind.of(view, rank, plan), kernel, call, path, x, out)
            if chosen is not None:
                self._chosen[path, plan] = chosen
        if chosen:
            self._run(view, rank, plan, x, out)
        return bool(chosen)

    def _run(self, view: SiteView, rank: int, plan: Plan, x: torch.Tensor, out: torch.Tensor) -> None:
        if x.is_cuda and torch.cuda.current_device() != x.device.index:  # Triton starts its work on the current one
            with torch.cuda.device(x.device):
                self._kernel(view, rank, plan, x, out)
        else:
            self._kernel(view, rank, plan, x, out)

    def _plan(self, call: Products, rows: int, vectors: int, view: SiteView) -> Plan:
        key = rows, vectors, view.a.device
        if key not in self._plans:
            if len(self._plans) >= _PLANS:  # a long block of calls with prompts of every length
                self._plans.clear()
                self._chosen.clear()
            self._plans[key] = Plan.of(call, rows, vectors // rows, view.a.device, view.a.dtype)
        return self._plans[key]
