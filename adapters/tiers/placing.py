"""Copies into the stacked weights: one at a time, and none while they grow.

Whatever fails here leaves the books as they were: the adapter that gave up its slot gets it back.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from lorary.adapters.adapter import Adapter
from lorary.adapters.layer.slots import Arena, Layout, SiteNeed, SiteSpec
from lorary.adapters.layer.streams import on_default_streams
from lorary.adapters.tiers.blocks import Block, grow, repack
from lorary.adapters.tiers.books import Books
from lorary.adapters.tiers.content import Content, Parts
from lorary.adapters.tiers.figures import Figures


@dataclass(frozen=True)
class Placement:
    """Where an adapter was put; which content lost that slot to it, and what is needed to give it back."""

    slot: int
    displaced: Content | None = None
    block: Block | None = None
    parts: Parts | None = None


class Placing:
    """The arena, and the way into it.

    Args:
        arena: an empty one, that grows with the adapters placed.
        books: of the same backbone, with their ``lock``.
        figures: of the same backbone.
        site: the :class:`SiteSpec` of a path; called when an adapter reaches a module that none reached before, so it
            is also the place to put the layer around that module.
    """

    def __init__(
        self,
        arena: Arena,
        books: Books,
        figures: Figures,
        lock: threading.RLock,
        site: Callable[[str], SiteSpec],
    ) -> None:
        self.arena = arena
        self._books = books
        self._figures = figures
        self._lock = lock
        self._site = site
        self._moving = threading.Lock()  # taken before the books' lock, never within it

    def room_for(self, needs: Mapping[str, SiteNeed]) -> Layout:
        """The layout of an arena that has a place for all of this: the present one, or a larger one in its place.

        Calls in flight keep the arena that they read; every adapter has the same slot in the larger one.
        """
        with self._moving:
            arena = self.arena
            if not arena.layout.fits(needs):
                sites = dict(arena.layout.sites)
                for path, need in needs.items():
                    sites[path] = (sites.get(path) or self._site(path)).widened(need)
                rank = max(arena.layout.rank, *(need.rank for need in needs.values()))
                with on_default_streams({spec.device for spec in sites.values()}):
                    larger = grow(arena, sites, rank)
                with self._lock:
                    self.arena = larger
            return self.arena.layout

    def place(self, adapter: Adapter, block: Block, predecessor: Content | None, thread: int) -> Placement:
        """Copy ``block`` into a slot: a free one, or that of the least recently used idle adapter.

        Raises:
            SlotsFullError: there is none (:meth:`Books.take_slot`).
        """
        content = adapter.content
        with self._moving:
            arena = self.arena
            block = repack(block, arena.layout)
            with self._lock:
                slot, displaced = self._books.take_slot(adapter, predecessor, thread)
            placement = None
            try:
                with on_default_streams(arena.layout.devices):
                    placement = self._displace(slot, displaced, on_trial=not content.proven)
                    started = time.perf_counter()
                    arena.place(slot, block)
            except BaseException:
                if placement is not None:
                    self._put_back(placement)
                elif displaced is not None:
                    self._reinstate(displaced, slot)  # nothing was written there yet
                raise
            with self._lock:
                self._books.slot_of[content] = slot
                self._figures.swapped(time.perf_counter() - started, block.nbytes)
                if displaced is not None:
                    self._figures.evictions += 1
                    self._books.settle(displaced)
                if content.block is not None and content.block is not block:
                    self._figures.dropped += self._books.keep(content, block)
        return placement

    def undo(self, content: Content, placement: Placement) -> None:
        """Take an adapter out of the slot it was just put in, and give it back to the one that lost it."""
        with self._moving:
            with self._lock:
                self._books.slot_of.pop(content, None)
            self._put_back(placement)

    def _displace(self, slot: int, displaced: Content | None, *, on_trial: bool) -> Placement:
        """Before a slot is written to: what it takes to undo that, should the adapter that comes not stand its trial.

        An adapter that was proven comes to stay, unless the copy fails; then the host's block is all there is.
        """
        if displaced is None:
            return Placement(slot)
        block = displaced.block
        if block is None and on_trial:  # the host's budget made it give up the block; its file may be gone by now
            parts = {device: buffer[slot : slot + 1].cpu().clone() for device, buffer in self.arena.buffers.items()}
            block = Block(self.arena.layout, parts)
        return Placement(slot, displaced, block, displaced.parts)

    def _put_back(self, placement: Placement) -> None:
        displaced, block = placement.displaced, placement.block
        if displaced is None:
            return
        with self._lock:
            lost = self._books.wanted(displaced) and displaced not in self._books.slot_of
        if lost and block is not None:
            # The first failure is the one to tell.
            with suppress(RuntimeError, MemoryError), on_default_streams(self.arena.layout.devices):
                self.arena.place(placement.slot, repack(block, self.arena.layout))
                displaced.parts = displaced.parts or placement.parts
                self._reinstate(displaced, placement.slot)
        with self._lock:
            self._books.settle(displaced)

    def _reinstate(self, displaced: Content, slot: int) -> None:
        with self._lock:
            self._books.slot_of = OrderedDict({displaced: slot, **self._books.slot_of})
