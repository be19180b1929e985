"""Leases: a call's adapters, brought into slots and kept there until it ends.

One short lock guards the books; nobody holds it while a file is read, a tensor is copied or a model computes, and a
call whose adapters are all in their slots waits for nothing else. A call keeps the arena, the slots and the versions
that it began with until it ends, whatever is loaded, swapped or evicted meanwhile.
"""

from __future__ import annotations

import operator
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.layer.packing import Packing
from lorary.adapters.layer.routing import Routing
from lorary.adapters.layer.slots import Arena, SiteSpec
from lorary.adapters.layer.step_cache import StepCache
from lorary.adapters.layer.streams import in_order
from lorary.adapters.tiers.arrivals import Arrivals, Origin
from lorary.adapters.tiers.books import Books, Reader
from lorary.adapters.tiers.content import Content
from lorary.adapters.tiers.figures import Figures, warn_of_thrashing
from lorary.adapters.tiers.host import Budget, HostTier
from lorary.adapters.tiers.placing import Placing
from lorary.adapters.tiers.stats import stats_of
from lorary.adapters.tiers.weights import Weights
from lorary.adapters.values import Followed, Stats
from lorary.hub.errors import SlotsBusyError, SlotsFullError, UsageError

_DIGEST = operator.attrgetter("digest")
_NO_THREAD = 0
_PAUSE = 0.002  # seconds before a call that found no slot looks again, so that two such calls don't chase each other


@dataclass(frozen=True)
class Limits:
    """What a backbone grants its adapters: slots, a budget on the host, and how long a call waits for a slot (s).

    ``kept`` is the dtype that they have in both.
    """

    slots: int
    host: Budget
    patience: float
    kept: torch.dtype


class Residency:
    """The adapters of one backbone.

    Args:
        limits: slots, host budget, patience, and the dtype of the stacked weights.
        dtype: that of the backbone; products are made in the wider of both.
        site: the :class:`SiteSpec` of a path; called when an adapter reaches a module that none reached before, so it
            is also the place to put the layer around that module.
        origin: where the adapters' tensors come from.
        home: the backbone's number.
    """

    def __init__(
        self, limits: Limits, dtype: torch.dtype, site: Callable[[str], SiteSpec], origin: Origin, home: int
    ) -> None:
        self.limits = limits
        self.slots = limits.slots
        self.home = home
        self.figures = Figures(limits.slots)
        self._lock = threading.RLock()
        self._waiting = 0  # calls that wait for slots
        self._released = 0  # grows whenever a call gives slots back
        self._slots_released = threading.Condition(self._lock)
        self._books = Books(limits.slots, HostTier(limits.host))
        computes = torch.promote_types(dtype, limits.kept)
        arena = Arena({}, rank=1, slots=limits.slots, dtype=limits.kept, home=home, computes=computes)
        self._placing = Placing(arena, self._books, self.figures, self._lock, site)
        self._arrivals = Arrivals(self._books, self.figures, self._lock, self._placing, origin)

    @property
    def arena(self) -> Arena:
        """The stacked weights that new calls read."""
        return self._placing.arena

    @property
    def lock(self) -> threading.RLock:
        """Held for a moment, by who reads or changes these books together with others."""
        return self._lock

    def names(self) -> list[str]:
        """The names of the loaded adapters, in the order they were loaded."""
        with self._lock:
            return list(self._books.named)

    def get(self, name: str) -> Adapter:
        """The adapter loaded under ``name``.

        Raises:
            UnknownReferenceError: none is.
        """
        with self._lock:
            return self._books.get(name)

    def demand_idle(self) -> None:
        """Refuse to go on while calls read adapters.

        Raises:
            UsageError: some do.
        """
        with self._lock:
            if self._books.readers:
                raise UsageError("calls are still running on this backbone; let them end first")

    def content(self, digest: str, task: str) -> Content:
        """The content of this digest for this task, shared by all adapters that have it."""
        with self._lock:
            return self._books.content(digest, task)

    def stats(self, backbone_bytes: int, followed: tuple[Followed, ...]) -> Stats:
        """The figures of this moment."""
        with self._lock:
            return stats_of(self._books, self._placing.arena, self.figures, backbone_bytes, followed)

    def publish(self, adapter: Adapter) -> None:
        """Make ``adapter`` the one that its name stands for; calls in flight finish on the one before."""
        with self._lock:
            self._books.publish(adapter)

    def withdraw(self, name: str) -> None:
        """Forget the adapter under ``name``, not its pin; calls in flight finish on it."""
        with self._lock:
            self._books.withdraw(name)

    def note_pin(self, name: str, pinned: bool) -> None:
        """Note whether what a name comes to stand for is kept in its slot."""
        with self._lock:
            (self._books.pins.add if pinned else self._books.pins.discard)(name)

    def pin(self, name: str, pinned: bool) -> None:
        """Keep an adapter in its slot, or let it be evicted again."""
        if not pinned:
            with self._lock:
                self._books.get(name)
                self.note_pin(name, False)
            return
        with self.lease([self.get(name)]), self._lock:
            self._books.get(name)
            self.note_pin(name, True)

    def resolve(self, names: Sequence[str | None]) -> list[Adapter | None]:
        """The adapters that these names stand for now, all looked up at one moment."""
        with self._lock:
            return [None if name is None else self._books.get(name) for name in names]

    def pinned(self) -> set[Content]:
        """What keeps its slot from everyone else: the contents in slots that pinned names stand for."""
        with self._lock:
            return self._books.pinned() & self._books.slot_of.keys()

    def route(self, adapters: Sequence[Adapter | None], packing: Packing, kept: StepCache) -> Routing:
        """The routing of a packed row whose adapters are all under leases that the caller goes on holding.

        ``kept`` is the caller's, one for all its packed rows. The routing reads the newest arena: a larger one has
        every leased adapter in the slot that it had.
        """
        with self._lock:
            return Routing(self._placing.arena, adapters, self._slots(adapters), packing, kept)

    def _slots(self, adapters: Sequence[Adapter | None]) -> list[int]:
        return [0 if adapter is None else self._books.slot_of[adapter.content] for adapter in adapters]

    @contextmanager
    def lease(
        self,
        adapters: Sequence[Adapter | None],
        *,
        replacing: str | None = None,
        weights: Weights | None = None,
        packing: Packing | None = None,
        patience: float | None = None,
        of_thread: bool = True,
    ) -> Iterator[Routing]:
        """The routing for a call whose rows use these adapters, published or not, valid until the block ends.

        Args:
            adapters: one per row.
            replacing: the idle adapter of this name gives up its slot, its own pin or not, if no other can be had.
            weights: the tensors of a single adapter, where they have just been read.
            packing: where the rows are the sequences of a packed one, how long each is.
            patience: how many seconds to wait for slots that other calls have; the backbone's unless given.
            of_thread: whether this thread ends it. A call doesn't wait for its own thread's leases to end, since that
                would be for ever; a lease that ends by itself is nobody's.

        Raises:
            SlotsFullError: there are more adapters than slots that this call can have.
            CheckpointError: an adapter's files have to be read, and can't be, or have changed.
        """
        started, reader = time.perf_counter(), Reader(threading.get_ident() if of_thread else _NO_THREAD)
        distinct = {adapter.content: adapter for adapter in adapters if adapter is not None}
        deadline = time.monotonic() + (self.limits.patience if patience is None else patience)
        routing = took = None
        try:
            missed = self._enter(distinct, reader, deadline, replacing, weights)
            brought = time.perf_counter()
            with self._lock:
                slots, arena = self._slots(adapters), self._placing.arena
            routing = Routing(arena, adapters, slots, packing)
            took = missed, brought - started
            with in_order(arena.layout.devices):
                yield routing
        finally:
            try:
                if routing is not None:
                    routing.close()
                self._leave(distinct, reader, took and (*took, time.perf_counter() - started))
            except BaseException:  # a Ctrl-C in the midst of it
                self._leave(distinct, reader)
                raise

    def prefetch(self, adapter: Adapter, *, to_slot: bool) -> None:
        """Bring an adapter to the host, and on into a slot if one can be had without waiting."""
        contents, reader = [adapter.content], Reader(threading.get_ident())
        try:
            with self._lock:
                self._books.retain(contents, reader)
            self._arrivals.bring([adapter], thread=reader.thread, to_slot=to_slot)
        except SlotsFullError:
            pass  # it waits on the host
        finally:
            self._leave(contents, reader)

    def _enter(
        self,
        distinct: dict[Content, Adapter],
        reader: Reader,
        deadline: float,
        replacing: str | None,
        weights: Weights | None,
    ) -> int:
        """Retain these contents, with all of them in slots; returns how many had to be brought there.

        Whatever comes of it, the caller lets the reader leave.
        """
        if len(distinct) > self.slots:  # before any of them pushes others out
            raise SlotsFullError(
                f"{len(distinct)} different adapters in one batch are beyond the number of {self.slots} slots; use "
                "fewer in a batch, or open the backbone with more slots"
            )
        waited = False
        while True:
            with self._lock:
                seen = self._released
                self._books.retain(distinct, reader)
                missing = [adapter for content, adapter in distinct.items() if not self._books.ready(content)]
                if not missing:
                    self._books.touch(distinct)
                    self.figures.hits += len(distinct)
                    return 0
                predecessor = self._books.predecessor(replacing) if replacing else None
            try:
                # Who may wait reads ahead meanwhile, once; else a file that the host has no room for is read in vain.
                if weights is None and (waited or time.monotonic() >= deadline):
                    self._demand_slots(missing, predecessor, reader)
                self._arrivals.bring(missing, thread=reader.thread, predecessor=predecessor, weights=weights)
            except SlotsBusyError:
                self._leave(distinct, reader)
                if time.monotonic() >= deadline:
                    raise
                self._wait(seen + 1, deadline)
                waited = True
            else:
                with self._lock:
                    self._books.touch(distinct)
                    self.figures.hits += len(distinct) - len(missing)
                    self.figures.misses += len(missing)
                return len(missing)

    def _demand_slots(self, missing: Sequence[Adapter], predecessor: Content | None, reader: Reader) -> None:
        """Raise, as :meth:`Books.find_slot` does, unless each adapter whose file would be read can have a slot now."""
        with self._lock:
            for adapter in missing:
                if adapter.content.block is None and adapter.content not in self._books.slot_of:
                    self._books.find_slot(adapter, predecessor, reader.thread)

    def _leave(
        self, contents: Collection[Content], reader: Reader, took: tuple[int, float, float] | None = None
    ) -> None:
        """Give contents back; of a call that was granted them, with how many it missed and what it took (s)."""
        message = None
        with self._lock:
            self._books.release(contents, reader)
            self._released += 1
            if self._waiting:
                self._slots_released.notify_all()
            if took is not None and self.figures.ended(tuple(map(_DIGEST, contents)), *took):
                message = self.figures.thrashing(self._placing.arena.slot_bytes)
        if message is not None:
            warn_of_thrashing(message)

    def _wait(self, seen: int, deadline: float) -> None:
        """Until another call has given slots back since the count stood at ``seen``."""
        time.sleep(_PAUSE)
        with self._lock:
            self._waiting += 1
            try:
                self._slots_released.wait_for(lambda: self._released != seen, max(0.0, deadline - time.monotonic()))
            finally:
                self._waiting -= 1
