"""Bringing adapters to where a call needs them: from their files to the host, from the host into a slot, proven.

Each content is brought by one thread at a time; others that need it meanwhile wait for that one. No two threads wait
for each other, since each brings what it has claimed before it waits for what others have.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Protocol

from lorary.adapters.adapter import Adapter
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.tiers.blocks import Block, pack
from lorary.adapters.tiers.books import Books
from lorary.adapters.tiers.content import Content, Parts
from lorary.adapters.tiers.figures import Figures
from lorary.adapters.tiers.placing import Placing
from lorary.adapters.tiers.weights import Weights


class Origin(Protocol):
    """Where adapters' tensors come from, and what is demanded of them on their backbone."""

    def open(self, adapter: Adapter) -> AbstractContextManager[Weights]:
        """The adapter's tensors, read again and held against its digest."""

    def factors(self, adapter: Adapter, weights: Weights) -> Mapping[str, LowRank]:
        """Its factors by site."""

    def parts(self, adapter: Adapter, weights: Weights) -> Parts:
        """What it has beside its slot."""

    def prove(self, adapter: Adapter, routing: Routing) -> None:
        """Raise unless it takes effect in the slot that it was put in."""


class Arrivals:
    """The way of adapters from their files into slots.

    Args:
        books: of the same backbone, with their ``lock``.
        figures: of the same backbone.
        placing: the way into the slots.
        origin: the way to the files.
    """

    def __init__(self, books: Books, figures: Figures, lock: threading.RLock, placing: Placing, origin: Origin) -> None:
        self._books = books
        self._figures = figures
        self._lock = lock
        self._placing = placing
        self._origin = origin
        self._claims: dict[Content, threading.RLock] = {}
        self._readers: ThreadPoolExecutor | None = None

    def bring(
        self,
        adapters: Sequence[Adapter],
        *,
        thread: int,
        predecessor: Content | None = None,
        weights: Weights | None = None,
        to_slot: bool = True,
    ) -> None:
        """Bring adapters, which the caller has retained, into slots (or to the host alone).

        Args:
            adapters: one for each content.
            thread: whose leases the caller's are.
            predecessor: an idle content that gives up its slot even if it is pinned, if no other can be had.
            weights: the tensors of the one adapter, where they are at hand.
            to_slot: False to stop at the host.

        Raises:
            SlotsFullError: no slot can be had.
            CheckpointError: an adapter's files can't be read, have changed, or don't take effect.
        """
        waiting = list(adapters)
        while waiting:
            mine: dict[Adapter, threading.RLock] = {}
            theirs: dict[Adapter, threading.RLock] = {}
            try:
                self._claim(waiting, to_slot, mine, theirs)
                blocks = self._fetch_all(list(mine), weights)
                if to_slot:
                    for adapter, block in zip(mine, blocks, strict=True):
                        self._settle_in(adapter, block, predecessor, thread)
            finally:
                try:
                    self._yield_claims(mine)
                except BaseException:  # a Ctrl-C in the midst of it; others wait for them
                    self._yield_claims(mine)
                    raise
            for claim in theirs.values():
                with claim:
                    pass
            # Whoever had them may have failed for reasons of his own, such as being interrupted.
            waiting = list(theirs)

    def _claim(
        self,
        adapters: Sequence[Adapter],
        to_slot: bool,
        mine: dict[Adapter, threading.RLock],
        theirs: dict[Adapter, threading.RLock],
    ) -> None:
        """Note what is to be brought by the caller, and what somebody else is bringing already.

        Whoever brings a content holds its claim, a lock: its release is one step, unlike an event's or a future's, and
        no Ctrl-C breaks it in two.
        """
        with self._lock:
            for adapter in adapters:
                content = adapter.content
                if self._books.ready(content) or (not to_slot and content.block is not None):
                    continue
                if content in self._claims:
                    theirs[adapter] = self._claims[content]
                else:
                    claim = threading.RLock()
                    claim.acquire()
                    mine[adapter] = self._claims[content] = claim

    def _yield_claims(self, mine: Mapping[Adapter, threading.RLock]) -> None:
        with self._lock:
            for adapter, claim in mine.items():
                if self._claims.get(adapter.content) is claim:
                    del self._claims[adapter.content]
        for claim in mine.values():
            with suppress(RuntimeError):  # it was released before the Ctrl-C
                claim.release()

    def _fetch_all(self, adapters: Sequence[Adapter], weights: Weights | None) -> list[Block]:
        """The adapters' blocks; of several whose files have to be read, all at once."""
        if sum(adapter.content.block is None for adapter in adapters) < 2:
            return [self._fetch(adapter, weights) for adapter in adapters]
        if self._readers is None:
            self._readers = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="lorary-read")
        return list(self._readers.map(self._fetch, adapters))

    def _fetch(self, adapter: Adapter, weights: Weights | None = None) -> Block:
        content = adapter.content
        with self._lock:
            block = content.block
        if block is not None:
            return block
        started = time.perf_counter()
        with nullcontext(weights) if weights is not None else self._origin.open(adapter) as read:
            lowrank = self._origin.factors(adapter, read)
            needs = {path: factors.need for path, factors in lowrank.items()}
            parts = self._origin.parts(adapter, read)
            block = pack(self._placing.room_for(needs), lowrank)
        with self._lock:
            self._figures.read_seconds.append(time.perf_counter() - started)
            self._figures.disk_reads += 1
            self._figures.bytes_read += adapter.checkpoint.size_bytes
            if self._books.wanted(content):  # the call that asked may have been broken off
                content.needs, content.parts = needs, content.parts or parts
                self._figures.dropped += self._books.keep(content, block)
        return block

    def _settle_in(self, adapter: Adapter, block: Block, predecessor: Content | None, thread: int) -> None:
        """Place one adapter and, the first time, prove it; a failure undoes all of it."""
        content = adapter.content
        placement = self._placing.place(adapter, block, predecessor, thread)
        if content.proven:
            return
        try:
            routing = Routing(self._placing.arena, [adapter], [placement.slot])
            try:
                self._origin.prove(adapter, routing)
            finally:
                routing.close()
        except BaseException:
            self._placing.undo(content, placement)
            with self._lock:
                self._books.discard(content)
            raise
        content.proven = True
