"""The low-rank products of a call: what each row's adapter adds to what a wrapped module returns (Hu et al. 2021).

On a CPU with a C compiler they are made in C, those of several adapters on a GPU in Triton where that is faster
(:mod:`lorary.adapters.kernel`); what follows is for all else. A call of one adapter reads the arena as it is. A call of
several copies the factors of its own adapters together, once, and its later passes (generation makes one for every
token) read those. Modules that are given the same input, as queries, keys and values are, share one product with A.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from lorary.adapters.kernel.mixed_rows import MixedRows, kernel_for
from lorary.adapters.kernel.on_gpu import MixedRowsOnGpu, kernel_on_gpu
from lorary.adapters.layer.bank import Bank
from lorary.adapters.layer.factors import Factors, Family, look_up, project, stack, update
from lorary.adapters.layer.rows import RowGroups, group_rows_by_slot, groups_for, put_into_groups
from lorary.hub.errors import RoutingError

if TYPE_CHECKING:
    from lorary.adapters.layer.slots import Arena


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
        bank: what was laid out before, by a caller who keeps it, and has groups for all of the slots.
    """

    def __init__(
        self, arena: Arena, slots: Sequence[int], rank_at: Callable[[str], int], bank: Bank | None = None
    ) -> None:
        self._arena = arena
        self._slots = tuple(slots)
        self._one = self._slots[0] if bank is None and len(set(self._slots)) == 1 else None
        self._rank_at = rank_at if bank is None else bank.rank_at
        self._kept = bank
        found = kernel_for(arena)
        alike = self._one is not None
        self._in_c = None if found is None else MixedRows(found, arena, self._rank_at, alike)
        on_gpu = None if alike else kernel_on_gpu(arena)
        self._on_gpu = None if on_gpu is None else MixedRowsOnGpu(on_gpu, arena, self._rank_at)
        self._groups: dict[tuple[int, torch.device], RowGroups] = {}
        self._rows_of: dict[tuple[int, int, torch.device], torch.Tensor] = {}
        self._banks: dict[int, Bank] = {}
        self._sites: dict[tuple[str, int], _Site | None] = {}
        # Both are replaced as a whole, so threads that share a call find the one or the other, never a mixture.
        self._last: tuple[torch.Tensor, list[str]] | None = None
        self._projected: _Projected | None = None

    def add(self, path: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``out``, the module's own output for ``x`` [rows, ..., inputs], with each row's product added.

        This runs once for every adapted module of every pass, so on small models its own steps are what counts.
        """
        if self._in_c is not None and self._in_c.add(self, path, x, out):
            return out
        if self._on_gpu is not None and self._on_gpu.add(self, path, x, out):
            return out
        return self.add_in_torch(path, x, out)

    def add_in_torch(self, path: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """:meth:`add` by PyTorch's own products."""
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
            factors = site.factors or self._for_rows(path, self._bank(x.shape[0]).read(path), site.groups)
            found = look_up(x, factors, site.groups) if factors.embedding else project(x, factors.a, site.groups)
            return update(out, found, factors, site.groups, grad)
        made = self._projected
        if made is None or made.x is not x or made.version != x._version or path not in made.hidden:
            parts = project(x, site.family.a, site.groups).split(site.family.ranks, dim=-1)
            hidden = dict(zip(site.family.paths, parts, strict=True))
            made = self._projected = _Projected(x, x._version, hidden)
        assert site.factors is not None
        return update(out, made.hidden[path], site.factors, site.groups, grad)

    def groups(self, rows: int, device: torch.device) -> RowGroups:
        """The groups of a layer's ``rows`` in a call with several adapters; raises as :meth:`slots_of` does."""
        found = self._groups.get((rows, device))
        if found is None:
            slots = self.slots_of(rows)
            if self._kept is None:
                found = group_rows_by_slot(slots, device)
            else:
                found = put_into_groups(slots, self._kept.slots, device)
            self._groups[rows, device] = found
        return found

    def slots_of(self, rows: int) -> list[int]:
        """The slot of each of a layer's ``rows``.

        Beam search and several answers per prompt repeat each row; layers that see flattened tokens see each row's
        tokens one after the other. In both, a layer's rows are a multiple of the call's, in the same order.

        Raises:
            RoutingError: the layer's rows aren't such a multiple, in a call with several adapters.
        """
        if self._one is not None:
            return [self._one] * rows
        repeats, rest = divmod(rows, len(self._slots))
        if rest or repeats == 0:
            raise RoutingError(
                f"a layer sees {rows} rows in a call of {len(self._slots)} with several adapters, so the rows "
                "can't be told apart; pass the rows of one adapter at a time"
            )
        return [slot for slot in self._slots for _ in range(repeats)]

    def rows_of(self, slot: int, rows: int, device: torch.device) -> torch.Tensor:
        """Which of a layer's ``rows`` have this slot, on ``device``; raises as :meth:`slots_of` does.

        Told on the host, once: for a mask, a GPU is waited for in every pass until it has counted what is in it.
        """
        key = slot, rows, device
        if key not in self._rows_of:
            found = [row for row, own in enumerate(self.slots_of(rows)) if own == slot]
            self._rows_of[key] = torch.tensor(found, dtype=torch.long, device=device)
        return self._rows_of[key]

    def _bank(self, rows: int) -> Bank:
        """The factors for a layer's ``rows``, in the order of their groups."""
        if self._kept is not None:
            return self._kept
        if rows not in self._banks:
            repeats = rows // len(self._slots)
            slots = groups_for([slot for slot in self._slots for _ in range(repeats)])
            same = (bank for bank in self._banks.values() if bank.slots == slots)
            self._banks[rows] = next(same, None) or Bank(self._arena, slots, self._rank_at)
        return self._banks[rows]

    def _open(self, key: tuple[str, int], x: torch.Tensor) -> _Site | None:
        """A site's first pass in this call; None where none of its adapters acts."""
        path, rows = key
        if self._rank_at(path) == 0:
            self._sites[key] = None
            return None
        self.note(path, x)
        if self._one is not None:
            site = self._sites[key] = _Site(None, self._view(path), first=True)
            return site
        groups, bank = self.groups(rows, self._arena.views[path].a.device), self._bank(rows)
        members = self.members(path)
        family = bank.family(members)
        for member in members if family else [path]:
            own = bank.factors(member)
            self._sites[member, rows] = _Site(groups, own and self._for_rows(member, own, groups), family)
        return self._sites[key]

    def _join(self, key: tuple[str, int], site: _Site) -> _Site:
        """The second pass of a call with one adapter: put those sites together that are given the same input."""
        path, rows = key
        members = [member for member in self.members(path) if (member, rows) in self._sites]
        factors = {member: self._view(member) for member in members}
        family = stack(factors)
        for member, own in factors.items():
            self._sites[member, rows] = _Site(None, own, family)
        return self._sites[key] or site

    def members(self, path: str) -> list[str]:
        """The sites that are given the same input as ``path``, so far as they act in this call."""
        device = self._arena.views[path].a.device
        return [
            member
            for member in self._arena.same_input[path]
            if member == path or (self._rank_at(member) and self._arena.views[member].a.device == device)
        ]

    def note(self, path: str, x: torch.Tensor) -> None:
        """Remember, in the arena, which sites are given the same tensor: they come one after the other."""
        known = self._arena.same_input.get(path)
        if known is None:
            known = self._last[1] if self._last is not None and self._last[0] is x else []
            known.append(path)
            self._arena.same_input[path] = known
        self._last = (x, known)

    def _view(self, path: str) -> Factors:
        """What a call with one adapter reads: its part of the arena, copied only where products need other numbers."""
        view, rank, slot = self._arena.views[path], self._rank_at(path), self._slots[0]
        vectors = None if view.bias is None else view.bias[slot], None if view.gain is None else view.gain[slot]
        a, b = view.a[slot, :, :rank], view.b[slot, :rank].to(view.computes)
        return Factors(a if view.embedding else a.to(view.computes), b, *vectors, view.embedding)

    def _for_rows(self, path: str, factors: Factors, groups: RowGroups | None) -> Factors:
        """Factors of groups, with the bias and the gain of each row."""
        view = self._arena.views[path]
        if groups is None or (view.bias is None and view.gain is None):
            return factors
        bias, gain = (
            None if part is None else part.index_select(0, groups.row_slots) for part in (view.bias, view.gain)
        )
        return replace(factors, bias=bias, gain=gain)
