"""Copies into the stacked weights: one at a time, and none while they grow.

Whatever fails here leaves the books as they were: the adapter that gave up its slot gets it back.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from lorary.adapters.adapter import Adapter
from lorary.adapters.blocks import Block, grow, repack
from lorary.adapters.books import Books
from lorary.adapters.content import Content
from lorary.adapters.figures import Figures
from lorary.adapters.slots import Arena, Layout, SiteNeed, SiteSpec


@dataclass(frozen=True)
class Placement:
    """Where an adapter was put, and which content lost that slot to it."""

    slot: int
    displaced: Content | None


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
            placement = Placement(slot, displaced)
            started = time.perf_counter()
            try:
                arena.place(slot, block)
            except BaseException:
                self._put_back(placement)
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

    def _put_back(self, placement: Placement) -> None:
        displaced = placement.displaced
        with self._lock:
            block = displaced.block if displaced is not None and self._books.wanted(displaced) else None
            if displaced is None or block is None or displaced in self._books.slot_of:
                return  # its next call reads it from its files
        with suppress(RuntimeError, MemoryError):  # the first failure is the one to tell; on the host it is safe
            self.arena.place(placement.slot, repack(block, self.arena.layout))
            with self._lock:
                self._books.slot_of = {displaced: placement.slot, **self._books.slot_of}
