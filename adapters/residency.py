"""Which adapters are loaded, which of them hold a slot, and who is reading it.

One short lock guards the books; no call holds it while it computes. A call takes a lease: it keeps the arena, the slots
and the versions that it began with until it ends, whatever is loaded, swapped or evicted meanwhile.
"""

from __future__ import annotations

import difflib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.routing import Routing
from lorary.adapters.slots import Arena, SiteSpec
from lorary.hub.errors import SlotsFullError, UnknownReferenceError

_REMEMBERED_PLACEMENTS = 1000


class Residency:
    """The books of one backbone.

    Args:
        slots: how many adapters can be on the device at once.
        dtype: the dtype of the stacked weights.
        site: the :class:`SiteSpec` of a path; called when an adapter reaches a module that none reached before, so it
            is also the place to put the layer around that module.
    """

    def __init__(self, slots: int, dtype: torch.dtype, site: Callable[[str], SiteSpec]) -> None:
        self.slots = slots
        self.arena = Arena({}, rank=1, slots=slots, dtype=dtype)
        self.placements: deque[float] = deque(maxlen=_REMEMBERED_PLACEMENTS)  # seconds of each copy into a slot
        self.evictions = 0
        self._site = site
        self._lock = threading.RLock()
        self._named: dict[str, Adapter] = {}
        self._slot_of: dict[Adapter, int] = {}  # least recently used first
        self._readers: dict[Adapter, int] = {}
        self._staged: dict[Adapter, Mapping[torch.device, torch.Tensor]] = {}

    def names(self) -> list[str]:
        """The names of the loaded adapters, in the order they were loaded."""
        with self._lock:
            return list(self._named)

    def get(self, name: str) -> Adapter:
        """The adapter loaded under ``name``.

        Raises:
            UnknownReferenceError: none is.
        """
        with self._lock:
            if name not in self._named:
                near = difflib.get_close_matches(name, self._named, n=3)
                hint = f"did you mean {' or '.join(near)}?" if near else f"loaded: {', '.join(self._named) or 'none'}"
                raise UnknownReferenceError(f"no adapter {name!r} is loaded on this backbone; {hint}")
            return self._named[name]

    def names_in_slots(self) -> list[str]:
        """The names of the adapters that hold a slot; the others wait on the host."""
        with self._lock:
            return [name for name, adapter in self._named.items() if adapter in self._slot_of]

    def publish(self, adapter: Adapter) -> None:
        """Make ``adapter`` the one that its name stands for; calls in flight finish on the one before.

        Raises:
            SlotsFullError: no slot can be had; the name then stands for what it stood for.
        """
        with self._lock:
            previous = self._named.get(adapter.name)
            self._place(adapter, previous)
            adapter.pinned = previous.pinned if previous else adapter.pinned
            self._named[adapter.name] = adapter
            if previous is not None:
                self._retire(previous)

    def withdraw(self, name: str) -> None:
        """Forget the adapter under ``name``; calls in flight finish on it."""
        with self._lock:
            adapter = self.get(name)
            del self._named[name]
            self._retire(adapter)

    def pin(self, name: str, pinned: bool) -> None:
        """Keep an adapter in its slot, or let it be evicted again."""
        with self._lock:
            adapter = self.get(name)
            if pinned:
                self._place(adapter)
            adapter.pinned = pinned

    def resolve(self, names: Sequence[str | None]) -> list[Adapter | None]:
        """The adapters that these names stand for now, all looked up at one moment."""
        with self._lock:
            return [None if name is None else self.get(name) for name in names]

    @contextmanager
    def lease(self, adapters: Sequence[Adapter | None], *, replacing: str | None = None) -> Iterator[Routing]:
        """The routing for a call whose rows use these adapters, published or not, valid until the block ends.

        With ``replacing``, the idle adapter of that name gives up its slot if no other can be had.
        """
        distinct = {adapter for adapter in adapters if adapter is not None}
        with self._lock:
            for adapter in distinct:
                self._readers[adapter] = self._readers.get(adapter, 0) + 1
            try:
                for adapter in distinct:
                    self._place(adapter, self._named.get(replacing) if replacing else None)
            except BaseException:
                self._release(distinct)
                raise
            slots = [0 if adapter is None else self._slot_of[adapter] for adapter in adapters]
            routing = Routing(self.arena, adapters, slots)
        try:
            yield routing
        finally:
            routing.close()
            with self._lock:
                self._release(distinct)

    def _release(self, adapters: set[Adapter]) -> None:
        for adapter in adapters:
            self._readers[adapter] -= 1
            if not self._readers[adapter]:
                del self._readers[adapter]
                if self._named.get(adapter.name) is not adapter:
                    self._free(adapter)

    def _retire(self, adapter: Adapter) -> None:
        if adapter not in self._readers:
            self._free(adapter)

    def _free(self, adapter: Adapter) -> None:
        self._slot_of.pop(adapter, None)
        self._staged.pop(adapter, None)

    def _place(self, adapter: Adapter, predecessor: Adapter | None = None) -> None:
        """Give an adapter a slot, evicting the least recently used idle one where all are taken."""
        if adapter in self._slot_of:
            self._slot_of[adapter] = self._slot_of.pop(adapter)  # now the most recently used
            return
        self._make_room(adapter)
        slot = self._free_slot(adapter, predecessor)
        staged = self._staged.get(adapter) or self.arena.stage(adapter.lowrank)
        started = time.perf_counter()
        self.arena.place(slot, staged)
        self.placements.append(time.perf_counter() - started)
        self._staged[adapter] = staged
        self._slot_of[adapter] = slot

    def _free_slot(self, adapter: Adapter, predecessor: Adapter | None) -> int:
        taken = set(self._slot_of.values())
        free = next((slot for slot in range(1, self.slots + 1) if slot not in taken), None)
        if free is not None:
            return free
        unread = [held for held in self._slot_of if held not in self._readers]
        idle = next((held for held in unread if not held.pinned), predecessor if predecessor in unread else None)
        if idle is None:
            pinned = sum(held.pinned for held in self._slot_of)
            raise SlotsFullError(
                f"no slot for {adapter.name!r}: of {self.slots} slots {pinned} are pinned and the others are in use by "
                "running calls; unpin one, use fewer adapters in a batch, or open the backbone with more slots"
            )
        self.evictions += 1
        return self._slot_of.pop(idle)

    def _make_room(self, adapter: Adapter) -> None:
        """Open a larger arena when this one has no place for a site or a rank; calls in flight keep the old one."""
        if self.arena.fits(adapter.lowrank):
            return
        sites = dict(self.arena.sites)
        for path, weights in adapter.lowrank.items():
            known = sites.get(path) or self._site(path)
            sites[path] = known.widened(weights)
        larger = Arena(sites, max(self.arena.rank, adapter.rank), self.slots, self.arena.dtype)
        staged = {held: larger.stage(held.lowrank) for held in self._slot_of}
        for held, slot in self._slot_of.items():
            larger.place(slot, staged[held])
        self.arena = larger
        self._staged = dict(staged)
