"""One text as it is written for a caller: up to its first stop string, and what it took to get there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from lorary.adapters.engine import Completion
from lorary.adapters.engine import Request as Generation
from lorary.adapters.server.stopping import StopText


class Writing:
    """Reads a generation once: its pieces first, then what it came to.

    Args:
        generation: what writes.
        stops: the caller's stop strings, none of them empty.
    """

    def __init__(self, generation: Generation, stops: Sequence[str]) -> None:
        self._generation = generation
        self._stops = stops
        self._text = StopText(stops)
        self._needed: int | None = None  # tokens up to a stop string

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The pieces of the text before its first stop string, which ends it; raises what the generation does."""
        before = 0
        async for piece, tokens in self._generation.pieces():
            if shown := self._text.add(piece):
                yield shown
            if self._text.ended:
                self._needed = self._first_with_stop(before, tokens)
                self._generation.finish()
                return
            before = tokens
        if rest := self._text.rest():
            yield rest

    async def completion(self) -> Completion:
        """What it came to; of tokens those up to the one that a stop string ends with."""
        completion = await self._generation.completed()
        if self._needed is None:
            return completion
        # Its last token may have been the last one allowed, and have brought a stop string too.
        return replace(completion, tokens=completion.tokens[: self._needed], finish_reason="stop")

    def _first_with_stop(self, before: int, tokens: int) -> int:
        """With how many tokens a stop string is there: more than ``before``; it was found in the text of ``tokens``."""

        def stopped(count: int) -> bool:
            text = self._generation.text(count)
            return any(stop in text for stop in self._stops)

        counts = range(before + 1, tokens)
        return before + 1 + bisect_left(counts, True, key=stopped)
