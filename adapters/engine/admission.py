"""Which requests wait and which run: a request runs when its adapter has a slot, and holds that slot until it ends.

The running ones are handed to transformers' scheduler, which shares out the steps and the cache among them. One short
lock guards the books; nobody holds it while the model computes.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from contextlib import ExitStack
from typing import TYPE_CHECKING

from lorary.adapters.base.memory import out_of_memory
from lorary.adapters.engine.request import WATCH_SECONDS, Request, cancelled
from lorary.adapters.tiers.content import Content
from lorary.adapters.tiers.residency import Residency
from lorary.hub.errors import EngineFailedError, EngineFullError, RequestFailedError, SlotsFullError

if TYPE_CHECKING:
    from lorary.adapters.engine.loop import Loop

_OVERTAKERS = 32  # how many requests of adapters that run already may pass one that waits for a slot
_ENDED = "the engine's thread has ended; open another engine"


class Admission:
    """The books of one engine.

    First come, first served, with one exception: while a request waits for a slot, those behind it that need none (of
    the bare backbone, or of adapters that hold one already) may pass, the latter only so often, or its turn might never
    come.

    Args:
        residency: gives out the slots.
        limit: the most requests that run at once.
        spare: how many slots to leave to others.
        most_waiting: the most requests that wait; None: any number.
    """

    def __init__(self, residency: Residency, limit: int, spare: int, most_waiting: int | None = None) -> None:
        self.finished = self.cancelled = self.failed = self.tokens = self.reused = 0
        self._residency = residency
        self._limit = limit
        self._spare = spare
        self._most_waiting = most_waiting
        self._loop: Loop | None = None
        self._lock = threading.RLock()
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}
        self._leases: dict[str, ExitStack] = {}
        self._given_up: set[str] = set()  # running requests that the loop has still to let go of
        self._admitting = False
        self._stopped: Exception | None = None
        self._idle = threading.Condition(self._lock)

    def connect(self, loop: Loop) -> None:
        """This loop runs the requests from now on."""
        self._loop = loop

    def submit(self, request: Request) -> None:
        """Take a request on.

        Raises:
            EngineStoppedError: the engine takes none any more.
            EngineFullError: it can't run yet, and as many wait as may.
        """
        with self._lock:
            if self._stopped is not None:
                raise self._stopped.with_traceback(None)
            self._waiting.append(request)
            self.admit()
            most = self._most_waiting
            if most is not None and len(self._waiting) > most and request in self._waiting:
                self._waiting.remove(request)
                raise EngineFullError(f"{most} requests wait already; come again in a moment")

    def admit(self) -> None:
        """Let those run that can; called whenever a slot may have fallen free."""
        with self._lock:
            if self._admitting:  # in this thread, where collecting garbage has cancelled a request; the loop calls soon
                return
            self._admitting = True
            try:
                self._admit()
            finally:
                self._admitting = False

    def settle(self, identifier: str) -> None:
        """The loop has let go of a request: its slot is free, the next ones may run."""
        with self._lock:
            self._release(identifier)
            self.admit()

    def advance(self, identifier: str, tokens: list[int], *, done: bool) -> None:
        """A running request has these tokens."""
        with self._lock:
            request = self._running.get(identifier)
            fresh = request.advance(tokens, done=done) if request is not None else 0
            ended = request is not None and request.done
            self.tokens += fresh
            self.finished += bool(fresh) and ended
            if ended and not done:
                self._given_up.add(identifier)  # at a stop string, of which the loop knows nothing
            if done:
                self.settle(identifier)

    def note_reused(self, tokens: int) -> None:
        """So many tokens of a prompt were in the cache already."""
        self.reused += tokens

    def give_up(self, request: Request, error: Exception | None = None) -> None:
        """End a request early: at its caller's wish, or with an error."""
        with self._lock:
            if not request.fail(error or cancelled(request)):
                return
            if error is None:
                self.cancelled += 1
            else:
                self.failed += 1
            if request.id in self._running:
                self._given_up.add(request.id)
            elif request in self._waiting:
                self._waiting.remove(request)
                self.admit()
                self._idle.notify_all()

    def finish(self, request: Request) -> None:
        """End a running request with the tokens that it has."""
        with self._lock:
            if request.close():
                self.finished += 1
                self._given_up.add(request.id)

    def given_up(self) -> tuple[str, ...]:
        """The running requests that the loop is to let go of."""
        return tuple(self._given_up.copy())  # a collection of garbage in the midst of it may add to it

    def running(self, identifier: str) -> Request:
        """The running request of this id."""
        return self._running[identifier]

    def counts(self) -> tuple[int, int, tuple[str, ...]]:
        """How many wait, how many run, and the names of the running ones' adapters."""
        with self._lock:
            waiting, running = len(self._waiting), list(self._running.values())
        names = sorted({request.adapter.name for request in running if request.adapter})
        return waiting, len(running), tuple(names)

    def refuse(self, reason: Exception) -> None:
        """Take no requests on from now; those that are there go on."""
        with self._lock:
            self._stopped = self._stopped or reason

    def drain(self, timeout: float | None) -> None:
        """Wait until no request is left, or ``timeout`` seconds are over."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = math.inf if deadline is None else deadline - time.monotonic()
            with self._idle:
                pause = max(min(left, WATCH_SECONDS), 0)
                if self._idle.wait_for(lambda: not self._waiting and not self._running, pause):
                    return
            if left <= 0:
                return
            self.watch()

    @property
    def stopped(self) -> str | None:
        """Why no request is taken on any more; None while they are."""
        self.watch()
        return None if self._stopped is None else str(self._stopped)

    def watch(self) -> None:
        """Called by those who wait: a loop that is gone without a word must not keep them waiting."""
        if self._loop is not None and not self._loop.is_running():
            self.stop(EngineFailedError(_ENDED))

    def end(self, reason: Exception) -> None:
        """Every request that is left ends with ``reason``; the running ones hold their slots while the loop goes on."""
        with self._lock:
            self.refuse(reason)
            for request in (*self._waiting, *self._running.values()):
                self.failed += request.fail(reason)
            self._waiting.clear()

    def stop(self, reason: Exception) -> None:
        """The loop has ended: every request that is left ends with ``reason``, and every slot is free."""
        with self._lock:
            self.end(reason)
            for identifier in tuple(self._running):
                self._release(identifier)
            self._idle.notify_all()

    def _admit(self) -> None:
        blocked: Request | None = None
        holding: set[Content] = set()
        for request in list(self._waiting):
            if len(self._running) >= self._limit:
                break
            if request.done:
                continue
            if blocked is not None and not _may_pass(request, blocked, holding):
                continue
            lease = self._lease(request)
            if lease is None and not request.done and blocked is None:
                blocked = request
                holding = self._holding()
            if lease is None:
                continue
            if blocked is not None and request.adapter is not None:
                blocked.overtaken += 1
            self._waiting.remove(request)
            self._run(request, lease)

    def _lease(self, request: Request) -> ExitStack | None:
        """The slot of a request's adapter, to hold; None where it has to wait, or is done."""
        lease = ExitStack()
        if request.adapter is None:
            return None if request.done else lease
        if not self._leaves_enough(request.adapter.content):
            return None
        try:
            # Whoever waits here keeps everybody waiting, and slots that fall free call for admission anyway.
            lease.enter_context(self._residency.lease([request.adapter], patience=0, of_thread=False))
        except SlotsFullError as error:
            # Slots that running calls use fall free by themselves; pinned ones don't.
            if len(self._residency.pinned()) >= self._residency.slots:
                self._drop(request, error)
            return None
        except Exception as error:
            self._drop(request, _of_memory(request, request.adapter.name, error) if out_of_memory(error) else error)
            return None
        if request.done:  # cancelled meanwhile, by what collecting garbage calls
            lease.close()
            return None
        return lease

    def _leaves_enough(self, content: Content) -> bool:
        """May this content have a slot, of those that aren't spared?"""
        holding, pinned = self._holding(), self._residency.pinned()
        if content in holding or content in pinned:
            return True
        return len(holding - pinned) < max(1, self._residency.slots - len(pinned) - self._spare)

    def _holding(self) -> set[Content]:
        """What the running requests have in slots."""
        return {running.adapter.content for running in self._running.values() if running.adapter}

    def _drop(self, request: Request, error: Exception) -> None:
        if request.fail(error):
            self._waiting.remove(request)
            self.failed += 1
        self._idle.notify_all()

    def _run(self, request: Request, lease: ExitStack) -> None:
        self._running[request.id] = request
        self._leases[request.id] = lease
        request.begin()
        assert self._loop is not None
        if not self._loop.begin(request):
            self.stop(EngineFailedError(_ENDED))

    def _release(self, identifier: str) -> None:
        self._running.pop(identifier, None)
        self._given_up.discard(identifier)
        lease = self._leases.pop(identifier, None)
        if lease is not None:
            lease.close()
        self._idle.notify_all()


def _of_memory(request: Request, name: str, error: Exception) -> RequestFailedError:
    failure = RequestFailedError(
        f"request {request.id}: memory ran out as its adapter {name} was brought into a slot; ask again, or open the "
        "backbone with fewer slots"
    )
    failure.__cause__ = error.with_traceback(None)  # its frames would keep the proof's tensors
    return failure


def _may_pass(request: Request, blocked: Request, holding: set[Content]) -> bool:
    if request.adapter is None:
        return True
    return request.adapter.content in holding and blocked.overtaken < _OVERTAKERS
