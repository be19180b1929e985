"""What follows when an object is garbage."""

from __future__ import annotations

import _thread
import threading
import weakref
from collections.abc import Callable
from typing import Any


def when_collected(owner: object, function: Callable[..., object], *arguments: Any) -> weakref.finalize[Any, Any]:
    """Call a function in a thread of its own when nobody has ``owner`` any more; not at the interpreter's end.

    Garbage is collected in any thread and at any moment, under whatever locks that has just then: what waits there for
    another thread, or for a lock, may do so for ever.
    """
    finalizer = weakref.finalize(owner, _begin, function, arguments)
    finalizer.atexit = False
    return finalizer


def _begin(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # threading's own way to start a thread takes a lock, and waits for its beginning.
    _thread.start_new_thread(_begin_thread, (function, arguments))


def _begin_thread(function: Callable[..., object], arguments: tuple[Any, ...]) -> None:
    # A thread that threading doesn't know is put down there for good once it joins another.
    threading.Thread(target=function, args=arguments, name="lorary-collected", daemon=True).start()
