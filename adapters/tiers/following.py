"""Following aliases: a name whose reference moves in the catalogue is swapped, without a restart.

A thread looks at each catalogue's change counter every few seconds and resolves the references only when that has
moved. It holds the backbone weakly, so it ends with it, and as a daemon it never keeps the interpreter from ending.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lorary.adapters.arguments import is_number
from lorary.adapters.collected import when_collected
from lorary.adapters.values import Followed, LoadedAdapter
from lorary.hub.errors import FollowWarning, SlotsFullError, UsageError
from lorary.hub.registry import Registry
from lorary.hub.tables.lookup import registry_reference

Load = Callable[[str, str, Registry], LoadedAdapter]
"""Loads a reference under a name; it is looked up in the registry."""

_PASSING = (SlotsFullError, MemoryError, torch.OutOfMemoryError, OSError)  # the next try may go through


_FOLLOWING: weakref.WeakSet[Following] = weakref.WeakSet()


def _go_on_in_child() -> None:
    for following in list(_FOLLOWING):
        following.go_on_in_child()


if hasattr(os, "register_at_fork"):  # servers load a backbone once and fork their workers from it
    os.register_at_fork(after_in_child=_go_on_in_child)


@dataclass
class _State:
    """``registry`` is the one that the name was followed in. ``serves`` is what is loaded, by digest and task; ``seen``
    what the reference was last found to mean, which may not have loaded.
    """

    shown: Followed
    registry: Registry
    serves: tuple[str, str]
    seen: tuple[str, str]
    interval: float
    retry: bool = False


class Following:
    """The names of one backbone that follow references, each of the registry that was the backbone's at the time.

    Args:
        load: loads a reference under a name; must leave what serves as it is when it fails.
    """

    def __init__(self, load: Load) -> None:
        self._load = load
        self._lock = threading.RLock()  # held while a version is picked up, never by a call that computes
        self._states: dict[str, _State] = {}
        self._stamps: dict[Path, tuple[object, ...]] = {}  # of each registry when it was last looked at
        self._stop: threading.Event | None = None  # of the thread that looks, None while there is none
        _FOLLOWING.add(self)

    def follow(self, reference: str, name: str, registry: Registry, interval: float) -> LoadedAdapter:
        """Load ``reference`` under ``name``, and again whenever it means another version.

        One thread looks for all names, as often as the one with the shortest interval asks for.

        Raises:
            UsageError: the reference can't move, or the interval isn't positive; and all that loading raises.
        """
        if registry_reference(reference).number is not None:
            raise UsageError(f"{reference!r} names one version for good; follow an alias (name@prod) or a bare name")
        if not is_number(interval) or not interval > 0:
            raise UsageError(f"interval={interval!r}: expected seconds, more than 0")
        with self._lock:
            loaded = self._load(reference, name, registry)
            before = self.interval
            meant = loaded.digest, loaded.task
            shown = Followed(name, reference, loaded.digest)
            self._states[name] = _State(shown, registry, meant, meant, interval)
            if self._stop is not None and self.interval < before:
                self._stop.set()  # its thread may be waiting for the end of the longer one
                self._stop = None
            if self._stop is None:
                self._look_on()
        return loaded

    def _look_on(self) -> None:
        self._stop = threading.Event()
        when_collected(self, self._stop.set)
        arguments = weakref.ref(self), self._stop
        threading.Thread(target=_watch, args=arguments, name="lorary-follow", daemon=True).start()

    def go_on_in_child(self) -> None:
        """After a fork, in the child: it has none of its parent's threads, and whatever they held is held for ever."""
        self._lock = threading.RLock()
        if self._stop is not None:
            self._look_on()

    def forget(self, name: str) -> bool:
        """Follow ``name`` no more; was it followed? What is being picked up for it is done with when this returns."""
        with self._lock:
            known = self._states.pop(name, None)
            if not self._states and self._stop is not None:
                self._stop.set()
                self._stop = None
            return known is not None

    def states(self) -> tuple[Followed, ...]:
        """What each followed name serves; not under the lock, since picking a version up may wait for a slot."""
        return tuple(state.shown for state in tuple(self._states.values()))

    def refresh(self) -> list[str]:
        """Look at the catalogues now; returns the names that were swapped."""
        with self._lock:
            stamps = {state.registry.path: state.registry.stamp() for state in self._states.values()}
            moved = {path for path, stamp in stamps.items() if stamp != self._stamps.get(path)}
            swapped = [
                name
                for name, state in self._states.items()
                if (state.registry.path in moved or state.retry) and self._pick_up(state)
            ]
            self._stamps = stamps
            return swapped

    def _pick_up(self, state: _State) -> bool:
        name, reference = state.shown.name, state.shown.reference
        try:
            version = state.registry.resolve(reference)
            meant = version.digest, version.task
            if meant == state.seen and not state.retry:
                state.shown = replace(state.shown, error=None) if meant == state.serves else state.shown
                return False
            state.seen = meant
            loaded = self._load(reference, name, state.registry)
        except Exception as error:  # whatever it is, the version before goes on serving and the thread goes on looking
            state.retry = isinstance(error, _PASSING)
            message = f"{reference}: can't be picked up, {name!r} goes on serving {state.shown.digest[:12]}: {error}"
            if message != state.shown.error:
                state.shown = replace(state.shown, error=message)
                warnings.warn(message, FollowWarning, stacklevel=2)
            return False
        state.serves = state.seen = loaded.digest, loaded.task
        state.retry = False
        state.shown = Followed(name, reference, loaded.digest)
        return True

    @property
    def interval(self) -> float:
        """Seconds between two looks: the shortest of the followed names', and no more than a thread can wait."""
        return min((threading.TIMEOUT_MAX, *(state.interval for state in tuple(self._states.values()))))


def _watch(followed: weakref.ref[Following], stop: threading.Event) -> None:
    while True:
        following = followed()
        if following is None:
            return
        interval = following.interval
        del following  # not held while waiting, or the backbone would never end
        if stop.wait(interval):
            return
        following = followed()
        if following is None:
            return
        with suppress(FollowWarning):  # where the user turned warnings into errors; it is in the stats too
            following.refresh()
