"""Arenas with adapters in them, and what the formula gives for a site's rows."""

from __future__ import annotations

from typing import Any

import torch

from lorary.adapters.base.modules import LinearShape
from lorary.adapters.layer.slots import Arena, LowRank, SiteSpec
from lorary.adapters.tiers.blocks import pack


def make_arena(
    sizes: dict[str, tuple[int, int]], rank: int, *, width: int | None = None, slots: int = 3,
    dtype: torch.dtype = torch.float32, device: str = "cpu", vectors: bool = False,
    computes: torch.dtype | None = None,
) -> Arena:  # fmt: skip
    """An arena of ``slots`` adapters of one rank, with room for ``width``; ``vectors``: with a bias and a gain."""
    torch.manual_seed(rank)
    room: dict[str, Any] = {"bias": vectors, "gain": vectors}
    sites = {path: SiteSpec(LinearShape(*shape), torch.device(device), **room) for path, shape in sizes.items()}
    arena = Arena(sites, rank=width or rank, slots=slots, dtype=dtype, computes=computes)
    for slot in range(1, slots + 1):
        weights = {}
        for path, (inputs, outputs) in sizes.items():
            a, b = torch.randn(rank, inputs) / inputs**0.5, torch.randn(outputs, rank) / rank**0.5
            bias, gain = (torch.randn(outputs), torch.randn(outputs)) if vectors else (None, None)
            weights[path] = LowRank(a, b, bias, 0.5, gain)
        arena.place(slot, pack(arena.layout, weights))
    return arena


def by_formula(arena: Arena, path: str, slots: Any, x: torch.Tensor, out: torch.Tensor, rank: int) -> torch.Tensor:
    """What is to come of each row of ``x`` and ``out``, in double precision."""
    rows = []
    for slot, row, own in zip(slots, x.double(), out.double(), strict=True):
        held = arena.read(slot, path, rank) if slot else None
        if held is not None:
            own = own if held.gain is None else own * (1 + held.gain.to(own))
            own = own + row @ held.a.to(own).T @ held.b.to(own).T
            own = own if held.bias is None else own + held.bias.to(own)
        rows.append(own)
    return torch.stack(rows).to(out.dtype)
