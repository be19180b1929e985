"""The products of a call's rows in C: what `mixed_rows.c` is told, and which tensors it can be given."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd import forward_ad

from lorary.adapters.kernel.build import library
from lorary.adapters.layer.factors import for_rows

try:  # PyTorch's own names, the only ones for who listens: without them C makes nothing
    from torch._C import _len_torch_dispatch_stack
    from torch._C._functorch import peek_interpreter_stack

    _ASKABLE = hasattr(forward_ad, "_current_level")
except ImportError:
    _ASKABLE = False

if TYPE_CHECKING:
    from lorary.adapters.layer.products import Products
    from lorary.adapters.layer.slots import Arena, SiteView

BLOCK = 8  # as in the C code
MOST_RANK = 512
# What PyTorch does as fast or faster: many rows of one adapter, and adapters so large that each takes several threads.
_MOST_ALIKE = 1024  # vectors
_ALONE = 2**17  # numbers of the factors at a site
_PLANS = 16

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
        if view.embedding or not view.a.is_cpu or view.a.dtype is not torch.float32 or rank > MOST_RANK:
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
    _read: tuple[torch.Tensor, ...]  # what the addresses are of

    @classmethod
    def of(cls, slots: Sequence[int], each: int) -> Plan:
        """The plan for rows of these ``slots`` with ``each`` vectors, one after the other."""
        row_slots = torch.tensor(slots, dtype=torch.long, device="cpu")
        ordered, rows = row_slots.repeat_interleave(each).sort(stable=True)
        bare = int((ordered == 0).sum())
        ordered, rows = ordered[bare:], rows[bare:]
        place = torch.arange(len(ordered), device="cpu")
        start = place[(place - torch.searchsorted(ordered, ordered)) % BLOCK == 0]
        slot = ordered[start]
        start = torch.cat([start, torch.tensor([len(ordered)], device="cpu")])
        plan = cls(rows.data_ptr(), start.data_ptr(), slot.data_ptr(), len(slot))
        plan.row_slots, plan.address = row_slots, ctypes.addressof(plan)
        plan._read = rows, start, slot
        return plan


@cache
def kernel() -> Any | None:
    """The C function of this machine's library; None where it can't be had."""
    found = library() if _ASKABLE else None
    return None if found is None else function_of(found)


def kernel_for(arena: Arena) -> Any | None:
    """:func:`kernel` for an arena that it can read from; for others nothing is compiled."""
    readable = arena.layout.dtype is torch.float32 and any(device.type == "cpu" for device in arena.layout.devices)
    return kernel() if readable else None


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

        False, and nothing done, for what is left to PyTorch: other numbers than float32, embeddings, few rows of large
        adapters, and calls that autograd or somebody who traces or transforms would have to see.
        """
        try:
            site = self._sites[path]
        except KeyError:
            site = self._sites[path] = self._open(call, path, x)
        if site is _NOTHING:
            return True
        if site is None or not _takes(x, out):
            return False
        shape, size, added = x.shape, x.numel(), out.numel()
        vectors = size // site.inputs
        if len(shape) < 2 or len(shape) != out.ndim or shape[-1] != site.inputs or added != vectors * site.outputs:
            return False
        if not vectors or (self._alike and vectors > _MOST_ALIKE):
            return False
        plan = self._plans.get((shape[0], vectors)) or self._plan(call, shape[0], vectors)
        threads, read, written = torch.get_num_threads(), x.data_ptr(), out.data_ptr()
        apart = read and written and (read + 4 * size <= written or written + 4 * added <= read)
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


def _takes(x: torch.Tensor, out: torch.Tensor) -> bool:
    return (
        _plain(x)
        and _plain(out)
        and not torch.is_grad_enabled()
        and forward_ad._current_level < 0  # whose tangents no_grad leaves alone
        and peek_interpreter_stack() is None  # torch.func
        and not _len_torch_dispatch_stack()
        and not torch.jit.is_tracing()
    )


def _plain(tensor: torch.Tensor) -> bool:
    return (
        type(tensor) is torch.Tensor
        and tensor.dtype is torch.float32
        and tensor.is_cpu
        and tensor.is_contiguous()
        and not tensor.is_neg()
    )
