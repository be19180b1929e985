"""The stacked weights: every resident adapter's low-rank factors, slot by slot, in one block of memory per device.

A slot is one contiguous run of numbers that holds all sites of one adapter, so placing an adapter is one copy, whatever
the number of layers and however many adapters are resident. Slot 0 stays zero: it is the bare backbone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch

from lorary.adapters.modules import LinearShape


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

    def has_room_for(self, weights: LowRank) -> bool:
        """Has the site, beside A and B, all that these weights need?"""
        return self.bias >= (weights.bias is not None) and self.gain >= (weights.gain is not None)

    def widened(self, weights: LowRank) -> SiteSpec:
        """The site with room for these weights too."""
        return replace(self, bias=self.bias or weights.bias is not None, gain=self.gain or weights.gain is not None)


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
    def acts(self) -> bool:
        """Does it change anything? Not while B is zero, as it is before training."""
        return any(bool(part.any()) for part in (self.b, self.bias, self.gain) if part is not None)


@dataclass(frozen=True)
class SiteView:
    """One site's part of every slot, as views into the arena at fixed addresses.

    ``a`` is [slots, inputs, rank], ``b`` [slots, outputs, rank], ``bias`` and ``gain`` [slots, outputs]. ``a`` is
    transposed against PEFT's: batched products on CPUs read it twice as fast so, and an adapter of smaller rank is the
    leading columns of both. ``b`` carries the scale. ``embedding``: the inputs are ids.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None
    embedding: bool


class Arena:
    """Room for ``slots`` adapters of up to ``rank`` at each of ``sites``, and slot 0 for the bare backbone.

    An arena never changes its shape: more sites or a larger rank make a new one, and calls in flight keep theirs.
    """

    def __init__(self, sites: Mapping[str, SiteSpec], rank: int, slots: int, dtype: torch.dtype) -> None:
        self.sites = dict(sites)
        self.rank = rank
        self.slots = slots
        self.dtype = dtype
        self.same_input: dict[str, list[str]] = {}  # sites that calls were seen to give the same tensor, by site
        self._buffers = {
            device: torch.zeros(slots + 1, self._numel_on(device), dtype=dtype, device=device)
            for device in {spec.device for spec in sites.values()}
        }
        self.views = {path: view for device in self._buffers for path, view in self._cut(device, self._buffers[device])}

    @property
    def nbytes(self) -> int:
        """What the arena takes, on all devices together."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    @property
    def slot_bytes(self) -> int:
        """What one slot takes: the bytes that placing an adapter copies."""
        return self.nbytes // (self.slots + 1)

    def fits(self, weights: Mapping[str, LowRank]) -> bool:
        """Has the arena a place for each of these tensors?"""
        return all(
            path in self.sites and site.rank <= self.rank and self.sites[path].has_room_for(site)
            for path, site in weights.items()
        )

    def stage(self, weights: Mapping[str, LowRank]) -> dict[torch.device, torch.Tensor]:
        """One slot's content for each device, on the host, ready to be copied: zeros where the adapter has no site."""
        staged = {device: torch.zeros(1, buffer.shape[1], dtype=self.dtype) for device, buffer in self._buffers.items()}
        for device, flat in staged.items():
            for path, view in self._cut(device, flat):
                if path not in weights:
                    continue
                site = weights[path]
                view.a[0, :, : site.rank] = site.a.T
                view.b[0, :, : site.rank] = site.b.to(torch.float32) * site.scale
                if view.bias is not None and site.bias is not None:
                    view.bias[0] = site.bias.to(torch.float32) * site.scale
                if view.gain is not None and site.gain is not None:
                    view.gain[0] = site.gain
        return staged

    def place(self, slot: int, staged: Mapping[torch.device, torch.Tensor]) -> None:
        """Copy a staged adapter into ``slot``, which no running call may be reading."""
        for device, flat in staged.items():
            self._buffers[device][slot].copy_(flat[0])

    def read(self, slot: int, path: str, rank: int) -> LowRank:
        """What a slot holds for a site, float32 on the CPU, with the scale in B and bias."""
        view = self.views[path]

        def copy(part: torch.Tensor | None) -> torch.Tensor | None:
            return None if part is None else part[slot].float().cpu()

        a, b = view.a[slot, :, :rank].float().cpu().T, view.b[slot, :, :rank].float().cpu()
        return LowRank(a, b, copy(view.bias), 1.0, copy(view.gain))

    def _numel_on(self, device: torch.device) -> int:
        return sum(spec.numel(self.rank) for spec in self.sites.values() if spec.device == device)

    def _cut(self, device: torch.device, buffer: torch.Tensor) -> Iterable[tuple[str, SiteView]]:
        """The sites' views of a block [slots, numbers per slot] on one device."""
        start = 0

        def cut(*shape: int) -> torch.Tensor:
            nonlocal start
            first, start = start, start + math.prod(shape)
            return buffer[:, first:start].unflatten(1, shape)

        for path, spec in self.sites.items():
            if spec.device == device:
                outputs = spec.shape.outputs
                a, b = cut(spec.shape.inputs, self.rank), cut(outputs, self.rank)
                vectors = cut(outputs) if spec.bias else None, cut(outputs) if spec.gain else None
                yield path, SiteView(a, b, *vectors, spec.shape.embedding)
