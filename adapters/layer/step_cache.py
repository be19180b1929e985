"""What continuous batching keeps from step to step, so that a request that joins or leaves costs next to nothing.

Which requests take part in a step changes all the time, which adapters they use seldom does. So the factors that
were laid out for some adapters serve every step whose adapters are among those, whatever their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from lorary.adapters.layer.bank import Bank
from lorary.adapters.layer.factors import Factors
from lorary.adapters.layer.products import Products
from lorary.adapters.layer.rows import places_in

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter
    from lorary.adapters.layer.slots import Arena

_SPARE = 4  # of so many adapters whose factors every step reads, one may be absent
_WASTE = 2  # a step computes at most about so many times its rows; else it has groups of its own


class KeptBank(Bank):
    """A bank that outlives a step: by then a slot may hold another adapter than the one that was copied from it."""

    def __init__(self, arena: Arena, adapters: Mapping[int, Adapter]) -> None:
        @cache
        def rank_at(path: str) -> int:
            return max(adapter.rank_at(path) for adapter in adapters.values())

        super().__init__(arena, tuple(adapters), rank_at)
        self._sure = _digests(adapters)  # by slot: all that was copied for it is this adapter's
        self._present = self._sure

    def take(self, adapters: Mapping[int, Adapter]) -> bool:
        """Can it serve a step of these adapters? Then it does, until the next one."""
        present = _digests(adapters)
        if not present.items() <= self._sure.items() or len(self.slots) > len(present) + 1 + len(present) // _SPARE:
            return False
        self._present = present
        return True

    def factors(self, path: str) -> Factors | None:
        """As :class:`Bank` has it; what is copied now is sure only of adapters that are in their slots now."""
        if not self.holds(path):
            self._sure = {slot: digest for slot, digest in self._sure.items() if slot in self._present}
        return super().factors(path)


class StepCache:
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

    def packed(self, arena: Arena, adapters: Mapping[int, Adapter], slots: Sequence[int]) -> Products:
        """The products of a packed row.

        Args:
            arena: the stacked weights.
            adapters: those of the row, by slot.
            slots: the slot of each token.
        """
        if not any(slots):  # of a row with adapters, the tokens that a layer sees may all be bare ones
            return Products(arena, slots, lambda path: 0)
        self._on(arena)
        self._alone = {slot: known for slot, known in self._alone.items() if slot in adapters}
        if self._bank is None or not self._bank.take(adapters):
            self._bank = KeptBank(arena, adapters)
        # A long prompt among short steps would fill everybody's group up to its length.
        skewed = places_in(slots, self._bank.slots) > _WASTE * len(slots) + len(self._bank.slots)
        return Products(arena, slots, self._bank.rank_at, None if skewed else self._bank)

    def _on(self, arena: Arena) -> None:
        if arena is not self._arena:
            self._arena, self._alone, self._bank = arena, {}, None


def _digests(adapters: Mapping[int, Adapter]) -> dict[int, str]:
    return {slot: adapter.digest for slot, adapter in adapters.items()}
