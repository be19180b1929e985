"""What continuous batching keeps from step to step, so that a request that joins or leaves costs next to nothing.

Which requests take part in a step changes all the time, which adapters they use seldom does. So the factors that
were laid out for some adapters serve every step whose adapters are among those, whatever their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import torch

from lorary.adapters.bank import Bank
from lorary.adapters.factors import Factors
from lorary.adapters.products import Products
from lorary.adapters.rows import groups_for, places_in

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter
    from lorary.adapters.slots import Arena

_LONG = 8  # tokens from which on a sequence gets a product of its own, instead of filling up everybody's groups
_WASTE = 3  # a step computes at most about so many times its rows before the groups are made anew


class KeptBank(Bank):
    """A bank that outlives a step: by then a slot may hold another adapter than the one that was copied from it."""

    def __init__(self, arena: Arena, slots: Sequence[int], adapters: Mapping[int, Adapter]) -> None:
        @cache
        def rank_at(path: str) -> int:
            return max(adapter.rank_at(path) for adapter in adapters.values())

        super().__init__(arena, slots, rank_at)
        self._sure = _digests(adapters)  # by slot: all that was copied for it is this adapter's
        self._present = self._sure

    def take(self, adapters: Mapping[int, Adapter], slots: Sequence[int]) -> bool:
        """Can it serve a step of these adapters and rows of these ``slots``? Then it does, until the next one."""
        present = _digests(adapters)
        if not present.items() <= self._sure.items():
            return False
        if len(self.slots) > 2 * len(present) + 2 or places_in(slots, self.slots) > _WASTE * (len(slots) + 8):
            return False
        self._present = present
        return True

    def factors(self, path: str) -> Factors | None:
        """As :class:`Bank` has it; what is copied now is sure only of adapters that are in their slots now."""
        if not self.holds(path):
            self._sure = {slot: digest for slot, digest in self._sure.items() if slot in self._present}
        return super().factors(path)


@dataclass(frozen=True)
class _Span:
    """Tokens of one sequence, long enough for a product of its own."""

    start: int
    stop: int
    products: Products


class StepProducts:
    """The products of one packed row. Call it without autograd: it writes into what the modules returned."""

    def __init__(self, slots: Sequence[int], short: Products | None, spans: Sequence[_Span]) -> None:
        self._slots = tuple(slots)
        self._short = short
        self._spans = tuple(spans)
        self._last: tuple[torch.Tensor, int, tuple[torch.Tensor, ...]] | None = None

    def add(self, path: str, x: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """``out`` [tokens, outputs], the module's own output for ``x`` [tokens, inputs], with the products added."""
        if self._short is not None:
            out = self._short.add(path, x, out)
        for span, part in zip(self._spans, self._parts(x), strict=True):
            span.products.add(path, part, out[span.start : span.stop])
        return out

    def row_slots(self, rows: int, device: torch.device) -> torch.Tensor:
        """The slot of each token: [tokens], on ``device``."""
        return torch.tensor(self._slots, device=device)

    def _parts(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        # Modules that are given the same tensor are to find the same parts: they share a product by that.
        version = 0 if x.is_inference() else x._version
        last = self._last
        if last is None or last[0] is not x or last[1] != version:
            last = self._last = x, version, tuple(x[span.start : span.stop] for span in self._spans)
        return last[2]


class Kept:
    """What is laid out in memory for the adapters of a loop's last steps; one thread uses it."""

    def __init__(self) -> None:
        self._arena: Arena | None = None
        self._alone: dict[int, tuple[str, Products]] = {}
        self._bank: KeptBank | None = None

    def alone(self, arena: Arena, slot: int, adapter: Adapter) -> Products:
        """The products of any number of rows of one adapter."""
        self._on(arena)
        known = self._alone.get(slot)
        if known is None or known[0] != adapter.digest:
            known = self._alone[slot] = adapter.digest, Products(arena, (slot,), adapter.rank_at)
        return known[1]

    def packed(
        self, arena: Arena, adapters: Mapping[int, Adapter], slots: Sequence[int], lengths: Sequence[int]
    ) -> StepProducts:
        """The products of a packed row.

        Args:
            arena: the stacked weights.
            adapters: those of the row, by slot.
            slots: the slot of each sequence.
            lengths: the tokens of each sequence.
        """
        self._on(arena)
        for slot in self._alone.keys() - adapters.keys():  # no more of them than a step has
            del self._alone[slot]
        tokens: list[int] = []
        short: list[int] = []
        spans: list[_Span] = []
        for slot, length in zip(slots, lengths, strict=True):
            start, is_long = len(tokens), slot and length >= _LONG
            tokens += [slot] * length
            short += [0 if is_long else slot] * length
            if is_long:
                spans.append(_Span(start, len(tokens), self.alone(arena, slot, adapters[slot])))
        return StepProducts(tokens, self._grouped(arena, adapters, short), spans)

    def _grouped(self, arena: Arena, adapters: Mapping[int, Adapter], slots: Sequence[int]) -> Products | None:
        present = {slot: adapters[slot] for slot in slots if slot}
        if not present:
            return None
        if self._bank is None or not self._bank.take(present, slots):
            self._bank = KeptBank(arena, groups_for(slots), present)
        return Products(arena, slots, self._bank.rank_at, self._bank)

    def _on(self, arena: Arena) -> None:
        if arena is not self._arena:
            self._arena, self._alone, self._bank = arena, {}, None


def _digests(adapters: Mapping[int, Adapter]) -> dict[int, str]:
    return {slot: adapter.digest for slot, adapter in adapters.items()}
