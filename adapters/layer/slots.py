"""The stacked weights: every resident adapter's low-rank factors, slot by slot, in one block of memory per device.

A slot is one contiguous run of numbers that holds all sites of one adapter, so placing an adapter is one copy, whatever
the number of layers and however many adapters are resident. Slot 0 stays zero: it is the bare backbone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lorary.adapters.base.modules import LinearShape
from lorary.adapters.layer.pages import zeros

if TYPE_CHECKING:
    from lorary.adapters.kernel.mixed_rows import Site
    from lorary.adapters.tiers.blocks import Block


@dataclass(frozen=True)
class SiteSpec:
    """A site that the arena has room for: its module's sizes, where it computes, whether it has a bias and a gain."""

    shape: LinearShape
    device: torch.device
    bias: bool = False
    gain: bool = False

    def numel(self, rank: int) -> int:
        """How many numbers one slot holds for this site."""
        return rank * (self.shape.inputs + self.shape.outputs) + (self.bias + self.gain) * self.shape.outputs

    def has_room_for(self, need: SiteNeed) -> bool:
        """Has the site, beside A and B, all that is needed?"""
        return self.bias >= need.bias and self.gain >= need.gain

    def widened(self, need: SiteNeed) -> SiteSpec:
        """The site with room for this too."""
        return replace(self, bias=self.bias or need.bias, gain=self.gain or need.gain)


@dataclass(frozen=True)
class SiteNeed:
    """What an adapter needs of a slot at one site."""

    rank: int
    bias: bool = False
    gain: bool = False


@dataclass(frozen=True)
class LowRank:
    """An adapter's factors at one site, on the host.

    ``a`` is [rank, inputs], ``b`` [outputs, rank], ``bias`` [outputs]. ``gain`` [outputs], where there is one (DoRA),
    multiplies the wrapped module's output by 1 + gain.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    scale: float
    gain: torch.Tensor | None = None

    @property
    def rank(self) -> int:
        """The number of rows of ``a``."""
        return int(self.a.shape[0])

    @property
    def need(self) -> SiteNeed:
        """What these factors need of a slot."""
        return SiteNeed(self.rank, self.bias is not None, self.gain is not None)

    @property
    def acts(self) -> bool:
        """Does it change anything? Not while B is zero, as it is before training."""
        return any(bool(part.any()) for part in (self.b, self.bias, self.gain) if part is not None)


@dataclass(frozen=True)
class SiteView:
    """One site's part of every slot, as views into the arena at fixed addresses.

    ``a`` is [slots, inputs, rank], ``b`` [slots, rank, outputs], ``bias`` and ``gain`` [slots, outputs]. The factors
    are transposed against PEFT's: products on CPUs read them faster so. ``b`` carries the scale. ``embedding``: the
    inputs are ids. ``computes`` is the dtype that products are made in, which may be wider than that of the arena.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None
    embedding: bool
    computes: torch.dtype


@dataclass(frozen=True)
class Layout:
    """How a slot's numbers are laid out: which sites, each with room for up to ``rank``, in ``dtype``.

    ``computes`` is the dtype that products with them are made in.
    """

    sites: Mapping[str, SiteSpec]
    rank: int
    dtype: torch.dtype
    computes: torch.dtype

    @property
    def devices(self) -> set[torch.device]:
        """The devices that the sites compute on."""
        return {spec.device for spec in self.sites.values()}

    def numel_on(self, device: torch.device) -> int:
        """How many numbers a slot holds on a device."""
        return sum(spec.numel(self.rank) for spec in self.sites.values() if spec.device == device)

    def fits(self, needs: Mapping[str, SiteNeed]) -> bool:
        """Has a slot a place for all of this?"""
        return all(
            path in self.sites and need.rank <= self.rank and self.sites[path].has_room_for(need)
            for path, need in needs.items()
        )

    def cut(self, device: torch.device, buffer: torch.Tensor) -> Iterator[tuple[str, SiteView]]:
        """The sites' views of a block [slots, numbers per slot] on one device."""
        start = 0

        def take(*shape: int) -> torch.Tensor:
            nonlocal start
            first, start = start, start + math.prod(shape)
            return buffer[:, first:start].unflatten(1, shape)

        for path, spec in self.sites.items():
            if spec.device == device:
                outputs = spec.shape.outputs
                a, b = take(spec.shape.inputs, self.rank), take(self.rank, outputs)
                vectors = take(outputs) if spec.bias else None, take(outputs) if spec.gain else None
                yield path, SiteView(a, b, *vectors, spec.shape.embedding, self.computes)


class Arena:
    """Room for ``slots`` adapters in one layout, and slot 0 for the bare backbone.

    An arena never changes its layout: more sites or a larger rank make a new one, and calls in flight keep theirs.
    ``home`` is the number of the backbone whose adapters it holds, None for one that any layer may read. Numbers are
    kept in ``dtype``, and products with them made in ``computes``, the same unless given.
    """

    def __init__(
        self,
        sites: Mapping[str, SiteSpec],
        rank: int,
        slots: int,
        dtype: torch.dtype,
        home: int | None = None,
        computes: torch.dtype | None = None,
    ) -> None:
        self.home = home
        self.layout = layout = Layout(dict(sites), rank, dtype, computes or dtype)
        self.slots = slots
        self.sites_in_c: dict[tuple[str, int], Site | None] = {}  # as the kernel reads them, by path and rank
        self.same_input: dict[str, list[str]] = {}  # sites that calls were seen to give the same tensor, by site
        with torch.inference_mode(False):  # whose tensors couldn't be written to outside of it
            self.buffers = {
                device: zeros(slots + 1, layout.numel_on(device), dtype, device) for device in layout.devices
            }
        self.views = {path: view for device in self.buffers for path, view in layout.cut(device, self.buffers[device])}

    @property
    def nbytes(self) -> int:
        """What the arena takes, on all devices together."""
        return sum(buffer.nbytes for buffer in self.buffers.values())

    @property
    def slot_bytes(self) -> int:
        """What one slot takes: the bytes that placing an adapter copies."""
        return self.nbytes // (self.slots + 1)

    def place(self, slot: int, block: Block) -> None:
        """Copy an adapter, laid out as this arena is, into ``slot``, which no running call may be reading."""
        for device, flat in block.parts.items():
            # From pinned memory the copy is queued behind what the device's stream runs, and nobody waits for it.
            self.buffers[device][slot].copy_(flat[0], non_blocking=flat.is_pinned())

    def read(self, slot: int, path: str, rank: int) -> LowRank:
        """What a slot holds for a site, float32 on the CPU, with the scale in B and bias."""
        view = self.views[path]

        def copy(part: torch.Tensor | None) -> torch.Tensor | None:
            return None if part is None else part[slot].float().cpu()

        a, b = view.a[slot, :, :rank].float().cpu().T, view.b[slot, :rank].float().cpu().T
        return LowRank(a, b, copy(view.bias), 1.0, copy(view.gain))
