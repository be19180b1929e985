"""Ctrl-C, SIGTERM and a lost terminal: the first signal lets a training step finish, the second stops at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any, Self

SAME = 1.0
"""Seconds within which a second signal is the first one again, sent twice by a terminal or a script."""

SENT_ON = 15.0
"""The same where a launcher started this process: it sends a signal on in its own time, after the terminal has."""

_HANGUP = getattr(signal, "SIGHUP", None)  # Windows has none


class Stops:
    """Whether the user has asked a run to stop. A context manager, which takes the signals in the main thread.

    Outside of :meth:`after_the_step` a signal raises KeyboardInterrupt at once: there is nothing to finish.
    """

    def __init__(self) -> None:
        self.requested = False
        self._when = 0.0
        self._note: Callable[[str], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _signals()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def request(self) -> None:
        """Stop; a signal that comes shortly after is the one that was asked with."""
        if not self.requested:
            self.requested, self._when = True, time.monotonic()

    @contextmanager
    def after_the_step(self, note: Callable[[str], None]) -> Iterator[None]:
        """While steps are taken: the first signal only sets :attr:`requested`, and ``note`` is told."""
        self._note = note
        try:
            yield
        finally:
            self._note = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        same = SENT_ON if int(os.environ.get("WORLD_SIZE", "1")) > 1 else SAME
        if self.requested and (number == _HANGUP or time.monotonic() - self._when < same):
            return  # the terminal, its shell and what lies between them each send a SIGHUP in their own time
        note, again = self._note, self.requested
        self.request()
        if note is None or again:
            raise KeyboardInterrupt
        with suppress(RuntimeError, OSError):  # something else was being printed, or there's nothing to print on
            note("stopping after this step; once more stops at once, without a checkpoint")


@contextmanager
def postponed() -> Iterator[None]:
    """Let a signal that asks to stop wait until the block ends; a second one stops at once.

    For what torch calls back into Python for, as it does under its modes: where a handler raises there, torch may be in
    a function that can't, and the process aborts without a word on what is kept.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: handler for number in _signals() if (handler := signal.getsignal(number)) is not None}
    waiting: list[tuple[int, float]] = []

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def wait(number: int, frame: FrameType | None) -> None:
        if waiting and time.monotonic() - waiting[0][1] >= SAME:
            restore()
            signal.raise_signal(number)
        waiting.append((number, time.monotonic()))

    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, wait)
    try:
        yield
    finally:
        restore()
        if waiting:
            signal.raise_signal(waiting[0][0])


def _signals() -> Iterator[signal.Signals]:
    """Those that ask a run to stop; a lost terminal doesn't where it is ignored already, as under ``nohup``."""
    yield from (signal.SIGINT, signal.SIGTERM)
    if _HANGUP is not None and signal.getsignal(_HANGUP) is not signal.SIG_IGN:
        yield _HANGUP
