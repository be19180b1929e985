"""One adapter on the host, laid out as a slot is: to place it is one copy.

A block outlives the arena that it was laid out for. When the arena has grown since, the block is laid out anew from its
own numbers, which are those of the slot, so nothing is read or computed again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorary.adapters.layer.slots import Arena, Layout, LowRank, SiteSpec


@dataclass(frozen=True)
class Block:
    """One slot's content for each device, on the host: [1, numbers per slot], zeros where the adapter has no site."""

    layout: Layout
    parts: Mapping[torch.device, torch.Tensor]

    @property
    def nbytes(self) -> int:
        """What it takes on the host."""
        return sum(part.nbytes for part in self.parts.values())


def pack(layout: Layout, weights: Mapping[str, LowRank]) -> Block:
    """Lay factors out as a slot of ``layout``, which must fit them; B and bias get the scale."""
    parts = _blank(layout)
    for device, flat in parts.items():
        for path, view in layout.cut(device, flat):
            if path not in weights:
                continue
            site = weights[path]
            view.a[0, :, : site.rank] = site.a.T
            view.b[0, : site.rank] = site.b.T.to(torch.float32) * site.scale
            if view.bias is not None and site.bias is not None:
                view.bias[0] = site.bias.to(torch.float32) * site.scale
            if view.gain is not None and site.gain is not None:
                view.gain[0] = site.gain
    return Block(layout, parts)


def repack(block: Block, layout: Layout) -> Block:
    """The same adapter laid out as a slot of ``layout``, a wider one."""
    if block.layout is layout:
        return block
    parts = _blank(layout)
    _carry_over(block.layout, block.parts, layout, parts)
    return Block(layout, parts)


def grow(arena: Arena, sites: Mapping[str, SiteSpec], rank: int) -> Arena:
    """A wider arena with every slot's content in the same slot; the old one stays as it is."""
    larger = Arena(sites, rank, arena.slots, arena.layout.dtype, arena.home, arena.layout.computes)
    _carry_over(arena.layout, arena.buffers, larger.layout, larger.buffers)
    return larger


def _blank(layout: Layout) -> dict[torch.device, torch.Tensor]:
    return {device: _zeros(layout.numel_on(device), layout.dtype, device) for device in layout.devices}


def _zeros(numel: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Host memory [1, numel] to copy to ``device`` from: pinned for CUDA, where the system grants that."""
    if device.type == "cuda":
        try:
            return torch.zeros(1, numel, dtype=dtype, device="cpu", pin_memory=True)
        except RuntimeError:
            pass  # the limit on locked memory is reached: plain memory works too, a little slower
    return torch.zeros(1, numel, dtype=dtype, device="cpu")


def _carry_over(
    old: Layout, source: Mapping[torch.device, torch.Tensor], new: Layout, target: Mapping[torch.device, torch.Tensor]
) -> None:
    """Copy all sites of blocks [slots, numbers per slot] from one layout to a wider one, on each device."""
    for device, flat in source.items():
        places = dict(new.cut(device, target[device]))
        for path, held in old.cut(device, flat):
            place = places[path]
            place.a[:, :, : old.rank] = held.a
            place.b[:, : old.rank] = held.b
            for mine, theirs in ((place.bias, held.bias), (place.gain, held.gain)):
                if mine is not None and theirs is not None:
                    mine.copy_(theirs)
