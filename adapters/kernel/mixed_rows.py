"""The products of a call's rows in C: what `mixed_rows.c` is told, and which tensors it can be given."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.kernel.blocks import Blocks, blocks_of
from lorary.adapters.kernel.build import library
from lorary.adapters.kernel.taken import ASKABLE, takes, vectors_in
from lorary.adapters.layer.factors import for_rows

if TYPE_CHECKING:
    from lorary.adapters.layer.products import Products
    from lorary.adapters.layer.slots import Arena, SiteView

BLOCK = 8  # as in the C code
MOST_RANK = 512
# What PyTorch does as fast or faster: many rows of one adapter, and adapters so large that each takes several threads.
_MOST_ALIKE = 1024  # vectors
_ALONE = 2**17  # numbers of the factors at a site
_PLANS = 16

# What factors may be kept in, as the C code calls it. Products are float32 in any case.
_KEPT = {torch.float32: "FLOAT32", torch.float16: "FLOAT16", torch.bfloat16: "BFLOAT16"}
_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64


class Site(ctypes.Structure):
    """The stacked factors of one module. It holds addresses alone: whoever uses it keeps the arena."""

    _fields_ = (
        ("a", _ADDRESS),
        ("b", _ADDRESS),
        ("slot_stride", _NUMBER),
        ("inputs", _NUMBER),
        ("outputs", _NUMBER),
        ("width", _NUMBER),
        ("rank", _NUMBER),
    )
    inputs: int
    outputs: int
    numbers: int  # that one adapter has there
    has_vectors: bool  # a bias or a gain
    view: SiteView
    address: int

    @classmethod
    def of(cls, view: SiteView, rank: int) -> Site | None:
        """The site of ``view``, of whose rank the first so many count; None for one that the C code can't read."""
        if view.embedding or not view.a.is_cpu or view.computes is not torch.float32 or rank > MOST_RANK:
            return None
        (_, inputs, width), outputs = view.a.shape, view.b.shape[-1]
        site = cls(view.a.data_ptr(), view.b.data_ptr(), view.a.stride(0), inputs, outputs, width, rank)
        site.view, site.address, site.numbers = view, ctypes.addressof(site), rank * (inputs + outputs)
        site.has_vectors = view.bias is not None or view.gain is not None
        return site


_NOTHING = Site()  # where none of a call's adapters acts


class Plan(ctypes.Structure):
    """Which vectors of an input have which slot, in blocks of one slot each; those of slot 0 are in none."""

    _fields_ = (("rows", _ADDRESS), ("start", _ADDRESS), ("slot", _ADDRESS), ("blocks", _NUMBER))
    blocks: int
    row_slots: torch.Tensor
    address: int
    _read: Blocks  # what the addresses are of

    @classmethod
    def of(cls, slots: Sequence[int], each: int) -> Plan:
        """The plan for rows of these ``slots`` with ``each`` vectors, one after the other."""
        made = blocks_of(slots, each, BLOCK)
        plan = cls(made.rows.data_ptr(), made.start.data_ptr(), made.slot.data_ptr(), len(made.slot))
        plan.row_slots, plan.address, plan._read = made.row_slots, ctypes.addressof(plan), made
        return plan


@cache
def kernel(kept: torch.dtype = torch.float32) -> Any | None:
    """The C function of this machine's library for factors of this dtype; None where it can't be had."""
    found = library(_KEPT[kept]) if ASKABLE else None
    return None if found is None else function_of(found)


def kernel_for(arena: Arena) -> Any | None:
    """:func:`kernel` for an arena that it can read from; for others nothing is compiled."""
    layout = arena.layout
    readable = layout.computes is torch.float32 and any(device.type == "cpu" for device in layout.devices)
    return kernel(layout.dtype) if readable else None


def function_of(library: ctypes.CDLL) -> Any:
    """A library's function: addresses of site, plan, input and output, and threads."""
    function = library.mixed_rows
    function.argtypes = [_ADDRESS, _ADDRESS, _ADDRESS, _ADDRESS, ctypes.c_int]
    function.restype = None
    return function


class MixedRows:
    """The products of one call's rows, in C.

    Args:
        kernel: the C function.
        arena: the stacked weights.
        rank_at: the largest rank that the call's adapters have at a site, 0 where none acts.
        alike: have all rows one slot?
    """

    def __init__(self, kernel: Any, arena: Arena, rank_at: Callable[[str], int], alike: bool) -> None:
        self._kernel = kernel
        self._arena = arena
        self._rank_at = rank_at
        self._alike = alike
        self._sites: dict[str, Site | None] = {}
        self._plans: dict[tuple[int, int], Plan] = {}
        self._vectors: dict[tuple[str, int], tuple[torch.Tensor | None, torch.Tensor | None]] = {}

    def add(self, call: Products, path: str, x: torch.Tensor, out: torch.Tensor) -> bool:
        """Add each row's product for ``x`` [rows, ..., inputs] to ``out`` [rows, ..., outputs], in place.

        ``call`` knows the rows, and is told of each site's first input, as it would be if PyTorch made the product. It
        isn't kept, since it keeps this: it, the arena and that input would stay until Python looks for garbage.

        False, and nothing done, for what is left to PyTorch: other inputs than float32, embeddings, few rows of large
        adapters, and calls that autograd or somebody who traces or transforms would have to see.
        """
        try:
            site = self._sites[path]
        except KeyError:
            site = self._sites[path] = self._open(call, path, x)
        if site is _NOTHING:
            return True
        if site is None or not (takes(x, out, torch.float32) and x.is_cpu and out.is_cpu):
            return False
        vectors = vectors_in(x, out, site.inputs, site.outputs)
        if not vectors or (self._alike and vectors > _MOST_ALIKE):
            return False
        rows = x.shape[0]
        plan = self._plans.get((rows, vectors)) or self._plan(call, rows, vectors)
        threads, read, written = torch.get_num_threads(), x.data_ptr(), out.data_ptr()
        apart = read and written and (read + x.nbytes <= written or written + out.nbytes <= read)
        if not apart or (plan.blocks < threads and site.numbers > _ALONE):
            return False
        bias, gain = self._bias_and_gain(path, site.view, plan) if site.has_vectors else (None, None)
        if gain is not None:
            out.addcmul_(out, for_rows(gain, out))
        self._kernel(site.address, plan.address, read, written, threads)
        if bias is not None:
            out += for_rows(bias, out)
        return True

    def _bias_and_gain(self, path: str, view: SiteView, plan: Plan) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Each [outputs], of all rows, as the arena has it; or [rows, outputs], copied together once for a call."""
        slots = plan.row_slots
        if self._alike:
            one = int(slots[0])
            return None if view.bias is None else view.bias[one], None if view.gain is None else view.gain[one]
        key = path, len(slots)
        if key not in self._vectors:
            self._vectors[key] = (
                None if view.bias is None else view.bias[slots],
                None if view.gain is None else view.gain[slots],
            )
        return self._vectors[key]

    def _plan(self, call: Products, rows: int, vectors: int) -> Plan:
        if len(self._plans) >= _PLANS:  # a long block of calls with prompts of every length
            self._plans.clear()
        plan = self._plans[rows, vectors] = Plan.of(call.slots_of(rows), vectors // rows)
        return plan

    def _open(self, call: Products, path: str, x: torch.Tensor) -> Site | None:
        rank = self._rank_at(path)
        if rank == 0:
            return _NOTHING
        call.note(path, x)
        known = self._arena.sites_in_c
        if (path, rank) not in known:
            known[path, rank] = Site.of(self._arena.views[path], rank)
        return known[path, rank]
