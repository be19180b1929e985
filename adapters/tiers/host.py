"""The host tier: which adapters' tensors stay in memory beside the slots, within a budget.

Above it are the slots, below it the files: an adapter beyond the budget keeps its name and its digest, and its tensors
are read again when it is used next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from lorary.adapters.tiers.blocks import Block
from lorary.adapters.tiers.content import Content
from lorary.hub.errors import UsageError
from lorary.hub.units import parse_size


@dataclass(frozen=True)
class Budget:
    """What the host tier may hold; None is no limit. Zero of either keeps nothing: every placing reads the files."""

    nbytes: int | None = None
    adapters: int | None = None

    @classmethod
    def of(cls, host_bytes: int | str | None, host_adapters: int | None) -> Budget:
        """A budget as users write it; ``host_bytes`` also as ``"512MB"`` (powers of ten) or ``"2GiB"`` (of two).

        Raises:
            UsageError: a size or a number that can't be one.
        """
        if host_adapters is not None and (type(host_adapters) is not int or host_adapters < 0):
            raise UsageError(f"host_adapters={host_adapters!r}: expected a whole number of adapters, 0 or more")
        nbytes = parse_size(host_bytes) if isinstance(host_bytes, str) else host_bytes
        if host_bytes is not None and (type(nbytes) is not int or nbytes < 0):
            raise UsageError(
                f"host_bytes={host_bytes!r}: expected a number of bytes such as 2_000_000_000, '2GB' or '512MiB'"
            )
        return cls(nbytes, host_adapters)


class HostTier:
    """The adapters whose blocks are on the host, least recently used first. The caller holds the books' lock."""

    def __init__(self, budget: Budget) -> None:
        self.budget = budget
        self.nbytes = 0
        self._held: OrderedDict[Content, Block] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def __contains__(self, content: Content) -> bool:
        return content in self._held

    def hold(self, content: Content, block: Block) -> list[Content]:
        """Keep a block, in the place of the one before; returns the adapters that had to give theirs up for it.

        An adapter that is larger than the whole budget gives up its own.
        """
        self.drop(content)
        content.block = self._held[content] = block
        self.nbytes += block.nbytes
        dropped = []
        while self._held and self._is_over():
            oldest = next(iter(self._held))
            self.drop(oldest)
            dropped.append(oldest)
        return dropped

    def drop(self, content: Content) -> None:
        """Give up an adapter's block, if it has one here."""
        block = self._held.pop(content, None)
        if block is not None:
            self.nbytes -= block.nbytes
            content.block = None

    def touch(self, contents: Iterable[Content]) -> None:
        """Note that adapters are being used."""
        held = self._held
        for content in contents:
            if content in held:
                held.move_to_end(content)

    def _is_over(self) -> bool:
        nbytes, adapters = self.budget.nbytes, self.budget.adapters
        return (nbytes is not None and self.nbytes > nbytes) or (adapters is not None and len(self._held) > adapters)
