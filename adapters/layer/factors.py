"""Low-rank factors as passes read them, and the arithmetic of one product: input times A times B (Hu et al. 2021)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from lorary.adapters.layer.rows import RowGroups


@dataclass(frozen=True)
class Factors:
    """What a pass reads at one site: one adapter's, or with a leading dimension those of each group of rows.

    ``a`` is [inputs, rank] and ``b`` [rank, outputs], which carries the scale; ``bias`` and ``gain`` are [outputs], or
    [rows, outputs]. A gain multiplies what the wrapped module returned by 1 + gain (DoRA, Liu et al. 2024).
    ``embedding``: the inputs are ids, and ``a`` that of the one adapter or of every slot, in the arena's dtype.
    """

    a: torch.Tensor
    b: torch.Tensor
    bias: torch.Tensor | None
    gain: torch.Tensor | None
    embedding: bool = False


@dataclass(frozen=True)
class Family:
    """Sites that are given the same input: their A side by side, so that one product serves all of them."""

    paths: tuple[str, ...]
    ranks: tuple[int, ...]
    a: torch.Tensor


def stack(factors: Mapping[str, Factors]) -> Family | None:
    """The family of these sites, None for a site that is alone."""
    if len(factors) < 2 or any(own.embedding for own in factors.values()):
        return None
    stacked = torch.cat([own.a for own in factors.values()], dim=-1)
    return Family(tuple(factors), tuple(own.a.shape[-1] for own in factors.values()), stacked)


def project(x: torch.Tensor, a: torch.Tensor, groups: RowGroups | None) -> torch.Tensor:
    """``x`` [rows, ..., inputs] times A: [all that are before the inputs, rank], or [groups, rows of a group, rank]."""
    if x.dtype is not a.dtype or x.device != a.device:
        x = x.to(device=a.device, dtype=a.dtype)
    return torch.mm(x.reshape(-1, x.shape[-1]), a) if groups is None else torch.bmm(groups.gather(x), a)


def look_up(ids: torch.Tensor, factors: Factors, groups: RowGroups | None) -> torch.Tensor:
    """What :func:`project` gives for one-hot inputs: the rows of A that ``ids`` [rows, ...] name."""
    a = factors.a
    ids = ids.to(a.device)
    if groups is None:
        return torch.nn.functional.embedding(ids.flatten(), a).to(factors.b.dtype)
    slots = groups.row_slots.view(-1, *[1] * (ids.ndim - 1))
    return groups.gather(a[slots, ids].to(factors.b.dtype))


def update(
    out: torch.Tensor, hidden: torch.Tensor, factors: Factors, groups: RowGroups | None, grad: bool
) -> torch.Tensor:
    """``out`` [rows, ..., outputs] times the gain, plus ``hidden`` times B, plus the bias."""
    b = factors.b
    if grad or not out.is_contiguous():
        out = out.clone(memory_format=torch.contiguous_format)  # autograd may need what the module returned
    if factors.gain is not None:
        out.addcmul_(out, for_rows(factors.gain, out))
    if groups is not None and groups.take is not None:
        groups.spread(torch.bmm(hidden, b).to(out), out)
    elif out.dtype is not b.dtype or out.device != b.device:
        out += torch.matmul(hidden, b).to(out).view(out.shape)
    elif groups is None:
        out.view(-1, out.shape[-1]).addmm_(hidden, b)
    else:
        out.view(hidden.shape[0], -1, out.shape[-1]).baddbmm_(hidden, b)
    if factors.bias is not None:
        out += for_rows(factors.bias, out)
    return out


def for_rows(vectors: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """One vector [outputs] for all rows as it is, vectors [rows, outputs] shaped to go with ``out`` [rows, ...]."""
    vectors = vectors.to(out)
    return vectors if vectors.ndim == 1 else vectors.view(len(vectors), *[1] * (out.ndim - 2), vectors.shape[-1])
