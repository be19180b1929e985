"""One text as it is written for a caller: up to its first stop string, and what it took to get there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace

from lorary.adapters.engine import Completion
from lorary.adapters.engine import Request as Generation
from lorary.adapters.server.logprobs import ToldToken
from lorary.adapters.server.stopping import StopText


class Writing:
    """Reads a generation once: its pieces first, then what it came to.

    Args:
        generation: what writes.
        stops: the caller's stop strings, none of them empty.
    """

    def __init__(self, generation: Generation, stops: Sequence[str]) -> None:
        self._generation = generation
        self._each = bool(stops) or generation.told is not None  # else, tokens that came together are read together
        self._text = StopText(stops)
        self._needed: int | None = None  # tokens up to a stop string
        self._tokens = generation.stream(special=True)
        self._noted = self._begin = 0
        self._told: list[ToldToken] = []

    async def pieces(self) -> AsyncGenerator[str, None]:
        """The pieces of the text before its first stop string, which ends it; raises what the generation does."""
        async for piece, tokens in self._generation.pieces(each=self._each):
            if self._generation.told is not None and self._noted < tokens:
                self._note()
            self._begin += len(piece)
            if shown := self._text.add(piece):
                yield shown
            if self._text.ended:
                self._needed = tokens
                self._generation.finish()
                return
        if rest := self._text.rest():
            yield rest

    def told(self) -> list[ToldToken] | None:
        """The tokens that have come since this was asked last; None where there is nothing to tell of them."""
        told, self._told = self._told, []
        return told or None

    async def completion(self) -> Completion:
        """What it came to; of tokens those up to the one that a stop string ends with."""
        completion = await self._generation.completed()
        if self._needed is None:
            return completion
        # Its last token may have been the last one allowed, and have brought a stop string too.
        return replace(completion, tokens=completion.tokens[: self._needed], finish_reason="stop")

    def _note(self) -> None:
        """Write down what there is to tell of the next token."""
        token, likelihood = self._generation.tokens[self._noted], self._generation.likelihood(self._noted)
        shown = self._tokens.would_add
        likeliest = tuple((shown(other), logprob) for other, logprob in likelihood.likeliest)
        self._told.append(ToldToken(shown(token), likelihood.logprob, likeliest, self._begin))
        self._tokens.add([token])
        self._noted += 1
