"""Ctrl-C and SIGTERM: the first one lets a training step finish, the second stops at once."""

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

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stops:
    """Whether the user has asked a run to stop. A context manager, which takes both signals in the main thread.

    Outside of :meth:`after_the_step` a signal raises KeyboardInterrupt at once: there is nothing to finish.
    """

    def __init__(self) -> None:
        self.requested = False
        self._when = 0.0
        self._note: Callable[[str], None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
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
        if self.requested and time.monotonic() - self._when < same:
            return
        if self._note is None or self.requested:
            raise KeyboardInterrupt
        self.request()
        with suppress(RuntimeError):  # the signal came while something else was being printed
            self._note("stopping after this step; once more stops at once, without a checkpoint")
