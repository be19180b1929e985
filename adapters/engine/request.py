"""One request as its caller holds it: a result to wait for, a stream to read, and a way to give it up."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from lorary.adapters.adapter import Adapter
from lorary.adapters.engine.decoding import Decoding
from lorary.adapters.engine.text import TextStream, text_of
from lorary.adapters.engine.values import Completion, Likelihood, Usage
from lorary.hub.errors import RequestCancelledError

if TYPE_CHECKING:
    from lorary.adapters.engine.admission import Admission

WATCH_SECONDS = 1.0  # how often a waiting caller makes sure that somebody is still at work


class Request:
    """A request to an engine, made by :meth:`Engine.submit`; any thread may wait for it, read it or cancel it.

    Iterating gives pieces of the text as they come, from the beginning for each reader: with ``for`` in a thread that
    may wait, with ``async for`` in an event loop, which goes on meanwhile.
    """

    def __init__(
        self,
        identifier: str,
        prompt: Sequence[int],
        adapter: Adapter | None,
        decoding: Decoding,
        tokenizer: Any,
        books: Admission,
        told: int | None = None,
    ) -> None:
        self.id = identifier
        self.prompt = tuple(prompt)
        self.adapter = adapter
        self.decoding = decoding
        self.told = told  # of how many of the likeliest tokens in place of each; None: of no probability at all
        self.overtaken = 0  # by how many requests since it began to wait for a slot
        self.tokenizer = tokenizer  # that of its prompt and its answer
        self._books = books
        self._news = threading.Condition()
        self._listeners: list[Callable[[], None]] = []  # of event loops, which can't wait for a condition
        self._tokens: list[int] = []
        self._likelihoods: list[Likelihood] = []
        self._done = self._stopped = False
        self._error: Exception | None = None
        self._submitted = time.perf_counter()
        self._began: float | None = None
        self._first: float | None = None
        self._ended: float | None = None

    # For the caller

    def result(self, timeout: float | None = None) -> Completion:
        """Wait for the whole answer.

        Args:
            timeout: the most seconds to wait; the request goes on when they are over.

        Raises:
            TimeoutError: it isn't done by then.
            RequestCancelledError: it was cancelled.
            RequestFailedError: it went wrong.
            SlotsFullError: its adapter can't have a slot, since others' pins keep all of them.
            CheckpointError: its adapter's files had to be read again, and couldn't be, or had changed.
            EngineStoppedError: the engine was closed, or has failed.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        self._wait(math.inf, deadline)
        return self._completion()

    async def completed(self) -> Completion:
        """Wait for the whole answer in an event loop; raises what :meth:`result` does, but for the time."""
        await self._awaited(math.inf)
        return self._completion()

    def __iter__(self) -> Iterator[str]:
        """Pieces of the text as they come, whole characters only; raises what :meth:`result` does."""
        stream, read, done = TextStream(self.tokenizer), 0, False
        while not done:
            done = self._wait(read + 1, None)
            fresh = self._tokens[read:]
            read += len(fresh)
            if piece := stream.add(fresh):
                yield piece
        if rest := self._rest(stream):
            yield rest

    async def __aiter__(self) -> AsyncIterator[str]:
        """The same in an event loop."""
        async for piece, _ in self.pieces():
            yield piece

    async def pieces(self, *, each: bool = False, special: bool = False) -> AsyncIterator[tuple[str, int]]:
        """The same, each piece with the number of tokens up to its end.

        Args:
            each: a piece for each token, however many have come at once; empty where a character is unfinished.
            special: write special tokens, too.
        """
        stream, read, done = TextStream(self.tokenizer, special=special), 0, False
        while not done:
            done = await self._awaited(read + 1)
            fresh = self._tokens[read:]
            for part in [[token] for token in fresh] if each else [fresh]:
                read += len(part)
                piece = stream.add(part)
                if piece or each:
                    yield piece, read
        if rest := self._rest(stream):
            yield rest, read

    def cancel(self) -> None:
        """Give the request up: its caller gets RequestCancelledError, its part of the cache and its slot are freed."""
        self._books.give_up(self)

    def finish(self) -> None:
        """Let the answer end with the tokens that are there, as if at a stop token; nothing while there are none."""
        self._books.finish(self)

    @property
    def done(self) -> bool:
        """Is there a result, or an error, to be had without waiting?"""
        return self._done

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens generated so far."""
        return tuple(self._tokens)

    @property
    def logprobs(self) -> tuple[Likelihood, ...] | None:
        """How likely each of these was; None where :meth:`Engine.submit` wasn't asked for it."""
        return None if self.told is None else tuple(self._likelihoods[: len(self._tokens)])

    def likelihood(self, place: int) -> Likelihood:
        """One of them."""
        return self._likelihoods[place]

    @property
    def usage(self) -> Usage:
        """What it has taken so far, and how it ended; at any time, and of any request."""
        with self._news:
            return Usage(len(self.prompt), len(self._tokens), self._reason() if self._done else None)

    def _reason(self) -> str:
        if self._error is not None:
            return "cancelled" if isinstance(self._error, RequestCancelledError) else "failed"
        return "stop" if self._stopped or self._tokens[-1] in self.decoding.stop_tokens else "length"

    def _wait(self, tokens: float, deadline: float | None) -> bool:
        """Wait until it is done (True) or there are so many tokens.

        Raises:
            TimeoutError: the deadline has passed.
        """
        while True:
            with self._news:
                left = None if deadline is None else deadline - time.monotonic()
                pause = WATCH_SECONDS if left is None else min(left, WATCH_SECONDS)
                if self._news.wait_for(lambda: self._done or len(self._tokens) >= tokens, max(pause, 0)):
                    return self._done
                if left is not None and left <= 0:
                    raise TimeoutError(f"request {self.id} isn't done yet: {len(self._tokens)} tokens so far")
            self._books.watch()

    async def _awaited(self, tokens: float) -> bool:
        """As :meth:`_wait`, without a deadline, in an event loop."""
        loop, news = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the event loop was closed, and nobody waits in it any more
                loop.call_soon_threadsafe(news.set)

        with self._news:
            self._listeners.append(tell)
        try:
            while True:
                news.clear()  # before the look: what comes after it is told
                if self._done or len(self._tokens) >= tokens:
                    return self._done
                try:
                    await asyncio.wait_for(news.wait(), WATCH_SECONDS)
                except TimeoutError:
                    self._books.watch()
        finally:
            with self._news:
                self._listeners.remove(tell)

    def _tell(self) -> None:
        """Wake all who wait; under the lock."""
        self._news.notify_all()
        for tell in self._listeners:
            tell()

    def _rest(self, stream: TextStream) -> str:
        """What a stream holds back at the end, or the error."""
        self._demand_sound()
        return stream.rest()

    def _demand_sound(self) -> None:
        if self._error is not None:
            raise self._error.with_traceback(None)  # it is raised for each who asks, and would keep all their frames

    def _completion(self) -> Completion:
        self._demand_sound()
        assert self._began is not None
        assert self._first is not None
        assert self._ended is not None
        tokens = tuple(self._tokens)
        return Completion(
            text=text_of(tokens, self.tokenizer),
            tokens=tokens,
            finish_reason=self._reason(),
            prompt_tokens=len(self.prompt),
            adapter=self.adapter.name if self.adapter else None,
            digest=self.adapter.digest if self.adapter else None,
            waited_seconds=self._began - self._submitted,
            first_token_seconds=self._first - self._submitted,
            seconds=self._ended - self._submitted,
            logprobs=self.logprobs,
        )

    # For the engine

    def begin(self) -> None:
        """It runs from now on."""
        self._began = time.perf_counter()

    def note(self, likelihood: Likelihood) -> None:
        """How likely the token was that comes next."""
        self._likelihoods.append(likelihood)

    def advance(self, tokens: Sequence[int], *, done: bool) -> int:
        """These are the tokens so far; it may be done by them, if they end with a stop string.

        Says how many of them are news: none, once the request is done.
        """
        with self._news:
            if self._done:
                return 0
            now = time.perf_counter()
            fresh = 0
            for token in tokens[len(self._tokens) :]:
                self._tokens.append(token)
                fresh += 1
                self._stopped = self.decoding.ends(self.prompt, self._tokens)
                if self._stopped:
                    break
            self._first = self._first or now
            if done or self._stopped:
                self._ended, self._done = now, True
            self._tell()
            return fresh

    def close(self) -> bool:
        """End it with the tokens that are there. Says whether that was news."""
        with self._news:
            if self._done or not self._tokens:
                return False
            self._ended, self._stopped, self._done = time.perf_counter(), True, True
            self._tell()
            return True

    def fail(self, error: Exception) -> bool:
        """End it with an error. Says whether that was news."""
        with self._news:
            if self._done:
                return False
            self._error, self._done = error, True
            self._tell()
            return True


def cancelled(request: Request) -> RequestCancelledError:
    """What the caller of a cancelled request gets."""
    return RequestCancelledError(
        f"request {request.id} was cancelled after {len(request.tokens)} tokens; submit it anew"
    )
