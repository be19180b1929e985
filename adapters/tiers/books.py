"""The books of one backbone: which adapter each name stands for, who reads it, and which slot it has.

Nothing here touches a tensor or waits; whoever calls holds the one short lock of
:class:`~lorary.adapters.tiers.residency.Residency`.
"""

from __future__ import annotations

import difflib
from collections import Counter, OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from lorary.adapters.adapter import Adapter
from lorary.adapters.tiers.blocks import Block
from lorary.adapters.tiers.content import Content
from lorary.adapters.tiers.host import HostTier
from lorary.hub.errors import SlotsBusyError, SlotsFullError, UnknownReferenceError


@dataclass(eq=False)
class Reader:
    """A call that reads contents; ``thread`` is the one that ends it, 0 where none in particular does."""

    thread: int


class Books:
    """Names, pins, readers and slots.

    ``slot_of`` and the host tier are in order of use, the least recently used first. ``readers`` has, for each content
    that is in use, who reads it. ``pins`` may have names that stand for an adapter outside of the slots just now.
    """

    def __init__(self, slots: int, host: HostTier) -> None:
        self.slots = slots
        self.host = host
        self.named: dict[str, Adapter] = {}
        self.pins: set[str] = set()
        self.slot_of: OrderedDict[Content, int] = OrderedDict()
        self.readers: dict[Content, list[Reader]] = {}
        self._names: Counter[Content] = Counter()
        self._contents: WeakValueDictionary[tuple[str, str], Content] = WeakValueDictionary()

    def get(self, name: str) -> Adapter:
        """The adapter loaded under ``name``.

        Raises:
            UnknownReferenceError: none is.
        """
        if name not in self.named:
            near = difflib.get_close_matches(name, self.named, n=3)
            few = list(self.named)[:8]
            loaded = f"{', '.join(few)}{' ...' if len(self.named) > len(few) else ''}" or "none"
            hint = f"did you mean {' or '.join(near)}?" if near else f"loaded: {loaded}"
            raise UnknownReferenceError(f"no adapter {name!r} is loaded on this backbone; {hint}")
        return self.named[name]

    def content(self, digest: str, task: str) -> Content:
        """The one content of this digest for this task, which is part of the digest only where a manifest says it."""
        return self._contents.setdefault((digest, task), Content(digest))

    def publish(self, adapter: Adapter) -> None:
        """Let ``adapter`` be what its name stands for; a pin is the name's and stays."""
        previous = self.named.get(adapter.name)
        self.named[adapter.name] = adapter
        self._names[adapter.content] += 1
        if previous is not None:
            self._unname(previous.content)

    def withdraw(self, name: str) -> None:
        """Forget a name, but not its pin."""
        adapter = self.get(name)
        del self.named[name]
        self._unname(adapter.content)

    def _unname(self, content: Content) -> None:
        self._names[content] -= 1
        if not self._names[content]:
            del self._names[content]
        self.settle(content)

    def wanted(self, content: Content) -> bool:
        """Does a name stand for it, or a call read it?"""
        return content in self._names or content in self.readers

    def ready(self, content: Content) -> bool:
        """Is it in a slot, and proven?"""
        return content.proven and content in self.slot_of

    def retain(self, contents: Iterable[Content], reader: Reader) -> None:
        """Note that these are read until :meth:`release`."""
        readers = self.readers
        for content in contents:
            readers.setdefault(content, []).append(reader)

    def release(self, contents: Iterable[Content], reader: Reader) -> None:
        """Note that the reader has ended; what nobody wants any more is freed.

        It may have been broken off before, or the retaining may have been: what is done already stays done.
        """
        readers = self.readers
        for content in contents:
            own = readers.get(content, [])
            if reader in own:
                own.remove(reader)
            if not own:
                readers.pop(content, None)
                self.settle(content)

    def touch(self, contents: Iterable[Content]) -> None:
        """Make contents that are in slots the most recently used ones."""
        slot_of = self.slot_of
        for content in contents:
            slot_of.move_to_end(content)
        self.host.touch(contents)

    def keep(self, content: Content, block: Block) -> int:
        """Put a block on the host; returns how many others had to give theirs up for it."""
        dropped = self.host.hold(content, block)
        for other in dropped:
            self.settle(other)
        return len(dropped)

    def settle(self, content: Content) -> None:
        """Free what an unread content has no right to: all of it without a name, its parts where it is nowhere."""
        if content in self.readers or (content in self._names and content in self.slot_of):
            return
        if content not in self._names:
            self.slot_of.pop(content, None)
            self.host.drop(content)
        if content not in self.slot_of and content not in self.host:
            content.parts = None

    def discard(self, content: Content) -> None:
        """Take a content that turned out not to be fit to serve out of its slot and off the host."""
        self.slot_of.pop(content, None)
        self.host.drop(content)
        self.settle(content)

    def pinned(self) -> set[Content]:
        """The contents that pinned names stand for."""
        return {self.named[name].content for name in self.pins & self.named.keys()}

    def predecessor(self, name: str) -> Content | None:
        """What gives its slot up for another version under this name, if it is pinned by no other name."""
        held = self.named.get(name)
        others = (self.pins & self.named.keys()) - {name}
        shared = held is not None and any(self.named[pin].content is held.content for pin in others)
        return None if held is None or shared else held.content

    def take_slot(self, adapter: Adapter, predecessor: Content | None, thread: int) -> tuple[int, Content | None]:
        """:meth:`find_slot`, with the content that has it out of it; raises what that does."""
        slot, idle = self.find_slot(adapter, predecessor, thread)
        if idle is not None:
            del self.slot_of[idle]
        return slot, idle

    def find_slot(self, adapter: Adapter, predecessor: Content | None, thread: int) -> tuple[int, Content | None]:
        """A slot for ``adapter``, and the content that has it: the least recently used idle one, if none is free.

        Raises:
            SlotsBusyError: every slot is pinned or in use, and other threads' calls will give some back.
            SlotsFullError: every slot is pinned or in use by the caller itself.
        """
        taken = set(self.slot_of.values())
        free = next((slot for slot in range(1, self.slots + 1) if slot not in taken), None)
        if free is not None:
            return free, None
        pinned = self.pinned()
        unread = [held for held in self.slot_of if held not in self.readers]
        idle = next((held for held in unread if held not in pinned), predecessor if predecessor in unread else None)
        if idle is not None:
            return self.slot_of[idle], idle
        message = (
            f"no slot for {adapter.name!r}: of {self.slots} slots {sum(held in pinned for held in self.slot_of)} are "
            "pinned and the others are in use by running calls; unpin one, use fewer adapters in a batch, or open the "
            "backbone with more slots"
        )
        read = [own for held, own in self.readers.items() if held in self.slot_of.keys() - pinned]
        others = any(all(reader.thread != thread for reader in own) for own in read)
        raise SlotsBusyError(message) if others else SlotsFullError(message)
