"""One text as it is written for a caller: up to its first stop string, and what it took to get there."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

from lorary.adapters.engine import Completion
from lorary.adapters.engine import Request as Generation
from lorary.adapters.engine.text import TextStream
from lorary.adapters.server.calls import Reader, Said, joined
from lorary.adapters.server.logprobs import ToldToken
from lorary.adapters.server.stopping import StopText


@dataclass(frozen=True)
class Part:
    """A piece of a text, or all of it, with what its caller wants to be told of its tokens."""

    said: Said
    tokens: Sequence[ToldToken] | None = None


class Writing:
    """Reads a generation, once.

    Args:
        generation: what writes.
        stops: the caller's stop strings, none of them empty.
        reader: what takes calls out of the text; None leaves it as it is.
    """

    def __init__(self, generation: Generation, stops: Sequence[str], reader: Reader | None = None) -> None:
        self.generation = generation
        self.thinking = 0  # tokens of thoughts so far, with what is written around them
        self._reader = reader
        # Else, tokens that have come together are read together.
        self._each = bool(stops) or reader is not None or generation.told is not None
        self._text = StopText(stops)
        self._needed: int | None = None  # tokens up to a stop string
        self._shown = TextStream(generation.tokenizer, special=True)
        self._noted = self._begin = 0
        self._told: list[ToldToken] = []

    async def parts(self) -> AsyncGenerator[tuple[Part, Completion | None], None]:
        """What comes before the first stop string, which ends it; beside the last part, what the request came to.

        Raises what the generation does.
        """
        special = self._reader is not None and self._reader.special
        shared = 0  # tokens that the parts so far have taken
        async for piece, tokens in self.generation.pieces(each=self._each, special=special):
            if self.generation.told is not None and self._noted < tokens:
                self._note()
            self._begin += len(piece)
            if (said := self._said(self._text.add(piece))) != Said():
                self.thinking += tokens - shared if said.thoughts else 0
                shared = tokens
                yield self._part(said), None
            if self._text.ended:
                self._needed = tokens
                self.generation.finish()
                break
        last = self._part(self._said(self._text.rest(), last=True))
        yield last, await self._completion()

    async def whole(self) -> tuple[Part, Completion]:
        """All of it, and what the request came to; around thoughts and calls the text has no empty lines."""
        *before, (last, end) = [one async for one in self.parts()]
        assert end is not None
        parts = [*(part for part, _ in before), last]
        text, thoughts = ("".join(getattr(part.said, name) for part in parts) for name in ("text", "thoughts"))
        calls = joined(call for part in parts for call in part.said.calls)
        if thoughts or calls:
            text, thoughts = text.strip(), thoughts.strip()
        return Part(Said(text, thoughts, calls), [token for part in parts for token in part.tokens or ()] or None), end

    async def _completion(self) -> Completion:
        """What it came to; of tokens those up to the one that a stop string ends with."""
        completion = await self.generation.completed()
        if self._needed is None:
            return completion
        # Its last token may have been the last one allowed, and have brought a stop string too.
        return replace(completion, tokens=completion.tokens[: self._needed], finish_reason="stop")

    def _said(self, text: str, *, last: bool = False) -> Said:
        return Said(text) if self._reader is None else self._reader.read(text, last=last)

    def _part(self, said: Said) -> Part:
        told, self._told = self._told, []
        return Part(said, told or None)

    def _note(self) -> None:
        """Write down what there is to tell of the next token."""
        token, likelihood = self.generation.tokens[self._noted], self.generation.likelihood(self._noted)
        shown = self._shown.would_add
        likeliest = tuple((shown(other), logprob) for other, logprob in likelihood.likeliest)
        self._told.append(ToldToken(shown(token), likelihood.logprob, likeliest, self._begin))
        self._shown.add([token])
        self._noted += 1
