"""What moving adapters costs: counts, times, and a warning when the slots are too few for the adapters in use."""

from __future__ import annotations

import contextlib
import inspect
import warnings
from collections import deque
from pathlib import Path
from typing import NamedTuple

from lorary.hub.errors import ThrashingWarning

_REMEMBERED = 1000  # copies into slots, and reads of files
_WINDOW = 64  # calls
_LOOK_EVERY = 8  # calls with a miss
_MISSED = 0.25  # of the adapters that a window's calls asked for
_SWAPPING = 0.1  # of the time that its calls took
_CONTEXTS = contextlib.__file__


class _Call(NamedTuple):
    """One call: its adapters by digest, how many weren't in their slots, and seconds bringing them and in all."""

    digests: tuple[str, ...]
    missed: int
    bringing: float
    seconds: float


class Figures:
    """The counts of one backbone; whoever writes to them holds the books' lock."""

    def __init__(self, slots: int) -> None:
        self.hits = self.misses = 0  # adapters that calls found in their slots, and those that they didn't
        self.swaps = self.evictions = self.disk_reads = self.dropped = 0
        self.bytes_swapped = self.bytes_read = 0
        self.swap_seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self.read_seconds: deque[float] = deque(maxlen=_REMEMBERED)
        self._slots = slots
        self._calls: deque[_Call] = deque(maxlen=_WINDOW)
        self._missing_calls = 0
        self._warned_at = 0  # the working set that was warned of; 0 when the slots were enough since

    def swapped(self, seconds: float, nbytes: int) -> None:
        """Note a copy into a slot."""
        self.swaps += 1
        self.bytes_swapped += nbytes
        self.swap_seconds.append(seconds)

    def ended(self, digests: tuple[str, ...], missed: int, bringing: float, seconds: float) -> bool:
        """Note a call that ended; True when it is time to look at the window."""
        self._calls.append(_Call(digests, missed, bringing, seconds))
        if not missed:
            return False
        self._missing_calls += 1
        return self._missing_calls % _LOOK_EVERY == 0

    def thrashing(self, slot_bytes: int) -> str | None:
        """What to say of the last calls' adapters if they take turns in too few slots; None else, or if said already.

        It is said again when the working set has doubled, or after the slots were enough for a window.
        """
        calls = list(self._calls)
        if len(calls) < _WINDOW:
            return None
        working = len({digest for call in calls for digest in call.digests})
        asked, missed = sum(len(call.digests) for call in calls), sum(call.missed for call in calls)
        bringing, seconds = sum(call.bringing for call in calls), sum(call.seconds for call in calls)
        if working <= self._slots or missed < _MISSED * asked or bringing < _SWAPPING * seconds:
            self._warned_at = self._warned_at if working > self._slots else 0
            return None
        if self._warned_at and working < 2 * self._warned_at:
            return None
        self._warned_at = working
        return (
            f"{working} adapters take turns in {self._slots} slots: the last {len(calls)} calls missed {missed} of "
            f"{asked} times and spent {bringing:.2f} s bringing adapters in against {seconds - bringing:.2f} s "
            f"computing; slots={working} would hold them all, for {(working - self._slots) * slot_bytes / 1e6:.1f} MB "
            "more on the device"
        )


def warn_of_thrashing(message: str) -> None:
    """Show the warning as the caller's: that of the first frame which isn't the loader's or a context manager's."""
    room = str(Path(__file__).parents[1])
    level, frame = 1, inspect.currentframe()
    while frame is not None and (frame.f_code.co_filename.startswith(room) or frame.f_code.co_filename == _CONTEXTS):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, ThrashingWarning, stacklevel=level)
