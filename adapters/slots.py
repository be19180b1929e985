"""The stacked weights: every resident adapter's low-rank factors, slot by slot, in one block of memory per device.

A slot is one contiguous run of numbers that holds all sites of one adapter, so placing an adapter is one copy, whatever
the number of layers and however many adapters are resident. Slot 0 stays zero: it is the bare backbone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch

from lorary.adapters.modules import LinearShape


@dataclass(frozen=True)
class SiteSpec:
    """A site that the arena has room for: the sizes of its module, where it computes, and whether any B has a bias."""

    shape: LinearShape
    device: torch.device
    bias: bool = False

    def numel(self, rank: int) -> int:
        """How many numbers one slot holds for this site."""
        return rank * (self.shape.inputs + self.shape.outputs) + (self.shape.outputs if self.bias else 0)


@dataclass(frozen=True)
class LowRank:
    """An adapter's factors at one site, on the host.

    ``a`` is [rank, inputs], ``b`` [outputs, rank], ``bias`` [outputs].
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    scale: float

    @property
    def rank(self) -> int:
        """The number of rows of ``a``."""
        return int(self.a.shape[0])


@dataclass(frozen=True)
class SiteView:
    """One site's part of every slot, as views into the arena at fixed addresses.

    ``a`` is [slots, rank, inputs], ``b`` [slots, rank, outputs], ``bias`` [slots, outputs]. ``b`` is transposed against
    PEFT's, so that an adapter of smaller rank is a leading block of both; it carries the scale.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None


class Arena:
    """Room for ``slots`` adapters of up to ``rank`` at each of ``sites``, and slot 0 for the bare backbone.

    An arena never changes its shape: more sites or a larger rank make a new one, and calls in flight keep theirs.
    """

    def __init__(self, sites: Mapping[str, SiteSpec], rank: int, slots: int, dtype: torch.dtype) -> None:
        self.sites = dict(sites)
        self.rank = rank
        self.slots = slots
        self.dtype = dtype
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
            path in self.sites and site.rank <= self.rank and (site.bias is None or self.sites[path].bias)
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
                view.a[0, : site.rank] = site.a
                view.b[0, : site.rank] = (site.b.to(torch.float32) * site.scale).T
                if view.bias is not None and site.bias is not None:
                    view.bias[0] = site.bias.to(torch.float32) * site.scale
        return staged

    def place(self, slot: int, staged: Mapping[torch.device, torch.Tensor]) -> None:
        """Copy a staged adapter into ``slot``, which no running call may be reading."""
        for device, flat in staged.items():
            self._buffers[device][slot].copy_(flat[0])

    def read(self, slot: int, path: str, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """What a slot holds for a site: a [rank, inputs], b [outputs, rank] with the scale in it, bias or None."""
        view = self.views[path]
        bias = view.bias[slot].float().cpu() if view.bias is not None else None
        return view.a[slot, :rank].float().cpu(), view.b[slot, :rank].float().cpu().T, bias

    def _numel_on(self, device: torch.device) -> int:
        return sum(spec.numel(self.rank) for spec in self.sites.values() if spec.device == device)

    def _cut(self, device: torch.device, buffer: torch.Tensor) -> Iterable[tuple[str, SiteView]]:
        """The sites' views of a block [slots, numbers per slot] on one device."""
        start = 0
        for path, spec in self.sites.items():
            if spec.device != device:
                continue
            a_size, b_size = self.rank * spec.shape.inputs, self.rank * spec.shape.outputs
            a = buffer[:, start : start + a_size].unflatten(1, (self.rank, spec.shape.inputs))
            b = buffer[:, start + a_size : start + a_size + b_size].unflatten(1, (self.rank, spec.shape.outputs))
            end = start + a_size + b_size
            bias = buffer[:, end : end + spec.shape.outputs] if spec.bias else None
            yield path, SiteView(a, b, bias)
            start += spec.numel(self.rank)
