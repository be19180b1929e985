"""The low-rank products of a call: what each row's adapter adds to what a wrapped module returns (Hu et al. 2021).

A call of one adapter reads the arena as it is. A call of several copies the factors of its own adapters together,
once, and its later passes (generation makes one for every token) read those. Modules that are given the same input, as
queries, keys and values are, share one product with A.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from lorary.adapters.rows import RowGroups, group_rows_by_slot
from lorary.hub.errors import RoutingError

if TYPE_CHECKING:
    from lorary.adapters.slots import Arena

_COPIED_BYTES = 256 * 2**20  # the most that one call copies to keep; what is beyond is copied anew in every pass


@dataclass(frozen=True)
class Factors:
    """What a pass reads at one site: one adapter's, or with a leading dimension those of each group of rows.

    ``a`` is [inputs, rank] and ``b`` [rank, outputs], which carries the scale; ``bias`` and ``gain`` are [outputs], or
    [rows, outputs]. A gain multiplies what the wrapped module returned by 1 + gain (DoRA, Liu et al. 2024).
    ``embedding``: the inputs are ids, and ``a`` that of the one adapter or of every slot.
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


@dataclass(frozen=True)
class _Site:
    """A site in one call.

    Without ``factors``, they are read anew in every pass. ``first``: the next pass is the second one, from which on it
    pays to put a family together.
    """

    groups: RowGroups | None
    factors: Factors | None
    family: Family | None = None
    first: bool = False


@dataclass(frozen=True)
class _Projected:
    """An input and what the A of a family made of it; good for as long as the input is that tensor, unchanged."""

    x: torch.Tensor
    version: int
    hidden: dict[str, torch.Tensor]


class Products:
    """The products of one call.

    Args:
        arena: the stacked weights.
        slots: the slot of each row; all the same for a call with one adapter, of any number of rows.
        rank_at: the largest rank that the call's adapters have at a site, 0 where none acts.
    """

    def __init__(self, arena: Arena, slots: Sequence[int], rank_at: Callable[[str], int]) -> None:
        self._arena = arena
        self._slots = tuple(slots)
        self._one = self._slots[0] if len(set(self._slots)) == 1 else None
        self._rank_at = rank_at
        self._groups: dict[tuple[int, torch.device], RowGroups] = {}
        self._sites: dict[tuple[str, int], _Site | None] = {}
        self._bytes_left = _COPIED_BYTES
        # Both are replaced as a whole, so threads that share a call find the one or the other, never a mixture.
        self._last: tuple[torch.Tensor, list[str]] | None = None
        self._projected: _Projected | None = None

    def add(self, path: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``out``, the module's own output for ``x`` [rows, ..., inputs], with each row's product added.

        This runs once for every adapted module of every pass, so on small models its own steps are what counts.
        """
        key = (path, 0 if self._one is not None else x.shape[0])
        try:
            site = self._sites[key]
        except KeyError:
            site = self._open(key, x)
        if site is None:
            return out
        if site.first:
            site = self._join(key, site)
        grad = torch.is_grad_enabled()
        # Under inference_mode a tensor doesn't say when it is written to; autograd keeps each pass's graph to itself.
        if site.family is None or grad or x.is_inference():
            factors = site.factors or self._read(path, site.groups)
            project = _look_up if factors.embedding else _project
            return _update(out, project(x, factors.a, site.groups), factors, site.groups, grad)
        made = self._projected
        if made is None or made.x is not x or made.version != x._version or path not in made.hidden:
            parts = _project(x, site.family.a, site.groups).split(site.family.ranks, dim=-1)
            hidden = dict(zip(site.family.paths, parts, strict=True))
            made = self._projected = _Projected(x, x._version, hidden)
        assert site.factors is not None
        return _update(out, made.hidden[path], site.factors, site.groups, grad)

    def groups(self, rows: int, device: torch.device) -> RowGroups:
        """The groups of a layer's ``rows`` in a call with several adapters.

        Beam search and several answers per prompt repeat each row; layers that see flattened tokens see each row's
        tokens one after the other. In both, a layer's rows are a multiple of the call's, in the same order.

        Raises:
            RoutingError: the layer's rows aren't such a multiple.
        """
        found = self._groups.get((rows, device))
        if found is None:
            repeats, rest = divmod(rows, len(self._slots))
            if rest or repeats == 0:
                raise RoutingError(
                    f"a layer sees {rows} rows in a call of {len(self._slots)} with several adapters, so the rows "
                    "can't be told apart; pass the rows of one adapter at a time"
                )
            slots = [slot for slot in self._slots for _ in range(repeats)]
            found = self._groups[rows, device] = group_rows_by_slot(slots, device)
        return found

    def _open(self, key: tuple[str, int], x: torch.Tensor) -> _Site | None:
        """A site's first pass in this call; None where none of its adapters acts."""
        path, rows = key
        if self._rank_at(path) == 0:
            self._sites[key] = None
            return None
        self._note(path, x)
        if self._one is not None:
            site = self._sites[key] = _Site(None, self._read(path, None), first=True)
            return site
        groups = self.groups(rows, self._arena.views[path].a.device)
        members = self._members(path)
        factors = {member: self._read(member, groups) for member in members}
        size = sum(own.b.nbytes + (0 if own.embedding else own.a.nbytes) for own in factors.values())
        if size > self._bytes_left:
            site = self._sites[key] = _Site(groups, None)
            return site
        self._bytes_left -= size
        family = _stack(factors)
        for member, own in factors.items():
            self._sites[member, rows] = _Site(groups, own, family)
        return self._sites[key]

    def _join(self, key: tuple[str, int], site: _Site) -> _Site:
        """The second pass of a call with one adapter: put those sites together that are given the same input."""
        path, rows = key
        members = [member for member in self._members(path) if (member, rows) in self._sites]
        factors = {member: self._read(member, None) for member in members}
        family = _stack(factors)
        for member, own in factors.items():
            self._sites[member, rows] = _Site(None, own, family)
        return self._sites[key] or site

    def _members(self, path: str) -> list[str]:
        """The sites that are given the same input as ``path``, so far as they act in this call."""
        device = self._arena.views[path].a.device
        return [
            member
            for member in self._arena.same_input[path]
            if member == path or (self._rank_at(member) and self._arena.views[member].a.device == device)
        ]

    def _note(self, path: str, x: torch.Tensor) -> None:
        """Remember, in the arena, which sites are given the same tensor: they come one after the other."""
        known = self._arena.same_input.get(path)
        if known is None:
            known = self._last[1] if self._last is not None and self._last[0] is x else []
            known.append(path)
            self._arena.same_input[path] = known
        self._last = (x, known)

    def _read(self, path: str, groups: RowGroups | None) -> Factors:
        view, rank = self._arena.views[path], self._rank_at(path)
        if groups is None:
            slot = self._slots[0]
            vectors = _at(view.bias, slot), _at(view.gain, slot)
            return Factors(view.a[slot, :, :rank], view.b[slot, :, :rank].mT, *vectors, view.embedding)
        a = view.a[:, :, :rank]
        return Factors(
            a if view.embedding else a.index_select(0, groups.slots),
            view.b[:, :, :rank].index_select(0, groups.slots).mT,
            None if view.bias is None else view.bias.index_select(0, groups.row_slots),
            None if view.gain is None else view.gain.index_select(0, groups.row_slots),
            view.embedding,
        )


def _stack(factors: Mapping[str, Factors]) -> Family | None:
    """The family of these sites, None for a site that is alone."""
    if len(factors) < 2 or any(own.embedding for own in factors.values()):
        return None
    stacked = torch.cat([own.a for own in factors.values()], dim=-1)
    return Family(tuple(factors), tuple(own.a.shape[-1] for own in factors.values()), stacked)


def _at(stacked: torch.Tensor | None, slot: int) -> torch.Tensor | None:
    return None if stacked is None else stacked[slot]


def _project(x: torch.Tensor, a: torch.Tensor, groups: RowGroups | None) -> torch.Tensor:
    """``x`` [rows, ..., inputs] times A: [all that are before the inputs, rank], or [groups, rows of a group, rank]."""
    if x.dtype is not a.dtype or x.device != a.device:
        x = x.to(device=a.device, dtype=a.dtype)
    return torch.mm(x.reshape(-1, x.shape[-1]), a) if groups is None else torch.bmm(groups.gather(x), a)


def _look_up(ids: torch.Tensor, a: torch.Tensor, groups: RowGroups | None) -> torch.Tensor:
    """What :func:`_project` gives for one-hot inputs: the rows of A that ``ids`` [rows, ...] name."""
    ids = ids.to(a.device)
    if groups is None:
        return torch.nn.functional.embedding(ids.flatten(), a)
    slots = groups.row_slots.view(-1, *[1] * (ids.ndim - 1))
    return groups.gather(a[slots, ids])


def _update(
    out: torch.Tensor, hidden: torch.Tensor, factors: Factors, groups: RowGroups | None, grad: bool
) -> torch.Tensor:
    """``out`` [rows, ..., outputs] times the gain, plus ``hidden`` times B, plus the bias."""
    b = factors.b
    if grad or not out.is_contiguous():
        out = out.clone(memory_format=torch.contiguous_format)  # autograd may need what the module returned
    if factors.gain is not None:
        out.addcmul_(out, _for_rows(factors.gain, out))
    if groups is not None and groups.take is not None:
        groups.spread(torch.bmm(hidden, b).to(out), out)
    elif out.dtype is not b.dtype or out.device != b.device:
        out += torch.matmul(hidden, b).to(out).view(out.shape)
    elif groups is None:
        out.view(-1, out.shape[-1]).addmm_(hidden, b)
    else:
        out.view(hidden.shape[0], -1, out.shape[-1]).baddbmm_(hidden, b)
    if factors.bias is not None:
        out += _for_rows(factors.bias, out)
    return out


def _for_rows(vectors: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """One vector [outputs] for all rows as it is, vectors [rows, outputs] shaped to go with ``out`` [rows, ...]."""
    vectors = vectors.to(out)
    return vectors if vectors.ndim == 1 else vectors.view(len(vectors), *[1] * (out.ndim - 2), vectors.shape[-1])
