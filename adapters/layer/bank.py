"""The factors of several adapters, copied together once and read by many passes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from lorary.adapters.layer.factors import Factors, Family, stack

if TYPE_CHECKING:
    from lorary.adapters.layer.slots import Arena

COPIED_BYTES = 256 * 2**20  # the most that one bank keeps; what is beyond is copied anew in every pass


class Bank:
    """The factors that groups of rows read: the first group those of the first of ``slots``, and so on.

    Args:
        arena: the stacked weights.
        slots: one for each group; a slot with many rows may have several.
        rank_at: the largest rank that the slots' adapters have at a site, 0 where none acts.
    """

    def __init__(self, arena: Arena, slots: Sequence[int], rank_at: Callable[[str], int]) -> None:
        self.arena = arena
        self.slots = tuple(slots)
        self.rank_at = rank_at
        self._factors: dict[str, Factors | None] = {}
        self._families: dict[str, Family] = {}
        self._index: dict[torch.device, torch.Tensor] = {}
        self._bytes_left = COPIED_BYTES

    def holds(self, path: str) -> bool:
        """Were this site's factors asked for before?"""
        return path in self._factors

    def factors(self, path: str) -> Factors | None:
        """A site's factors without bias and gain, which belong to rows; None where there is no room to keep them."""
        if path not in self._factors:
            made = self.read(path)
            size = made.b.nbytes + (0 if made.embedding else made.a.nbytes)
            fits = size <= self._bytes_left
            self._bytes_left -= size if fits else 0
            self._factors[path] = made if fits else None
        return self._factors[path]

    def family(self, paths: Sequence[str]) -> Family | None:
        """These sites' A side by side; None for a site that is alone, or where there was no room for one of them."""
        known = self._families.get(paths[0])
        if known is not None and known.paths == tuple(paths):
            return known
        factors = {path: own for path in paths if (own := self.factors(path)) is not None}
        made = stack(factors) if len(factors) == len(paths) else None
        if made is not None:
            self._families |= dict.fromkeys(paths, made)
        return made

    def read(self, path: str) -> Factors:
        """Copy a site's factors out of the arena."""
        view, rank = self.arena.views[path], self.rank_at(path)
        device = view.a.device
        if device not in self._index:
            self._index[device] = torch.tensor(self.slots, dtype=torch.long, device=device)
        slots, a = self._index[device], view.a[:, :, :rank]
        b = view.b[:, :rank].index_select(0, slots).to(view.computes)
        # An embedding looks its ids up in every slot's A, so there is nothing to copy.
        a = a if view.embedding else a.index_select(0, slots).to(view.computes)
        return Factors(a, b, None, None, view.embedding)
