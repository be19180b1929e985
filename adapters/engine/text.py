"""Text from tokens as they come, whole characters only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"  # what decoders put for bytes that make no character (yet)
_LONG = 16  # so many tokens are held back before it is asked whether they are past help
_OPEN = 3  # a character has four bytes, so as many tokens at most may yet be the beginning of one
_KEPT = 8  # of the tokens that are past help: enough to say so of them alone


class TextStream:
    """Turns the tokens of one text into pieces of it; a character of several tokens comes with the last of them.

    A token's text depends on the one before it (a space, an umlaut's first byte), so each piece is what new tokens add
    to a text that begins with the piece before. Not ``tokenizers.decoders.DecodeStream``: it fails on bytes that make
    no character, where the tokenizer falls back to bytes (Llama 2's, Gemma's).

    Args:
        tokenizer: what made the tokens.
        special: write special tokens, too.
    """

    def __init__(self, tokenizer: Any, *, special: bool = False) -> None:
        self._tokenizer = tokenizer
        self._special = special
        self._before: list[int] = []  # the tokens of the last piece
        self._held: list[int] = []

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete, empty while a character is unfinished."""
        self._held += tokens
        piece = self.rest()
        if not piece or piece.endswith(_UNFINISHED):
            return self._let_go(piece) if len(self._held) > _LONG else ""
        self._before, self._held = self._held, []
        return piece

    def rest(self) -> str:
        """What is held back: at the end of a text, an unfinished character."""
        return self._beyond(self._held)

    def would_add(self, token: int) -> str:
        """What a token would add to the pieces so far; a sign of its own where it leaves a character unfinished."""
        added = self._beyond([*self._held, token])
        return _UNFINISHED if added.endswith(_UNFINISHED) else added

    def _let_go(self, piece: str) -> str:
        """What of a long piece no token can finish any more; empty where that can't be told.

        All that is held back is decoded with each token that comes, so what stays must not grow.
        """
        lost, still_open = self._held[:-_OPEN], self._held[-_OPEN:]
        kept = lost[-_KEPT:]
        text = self._beyond(lost)
        # Where something follows that is no part of it, a byte-level decoder has done with it. One that falls back to
        # bytes takes a run of them as a whole: it has to be past help, and so does what stands for it from now on.
        followed = piece.startswith(text) and len(piece) > len(text)
        later = TextStream(self._tokenizer, special=self._special)
        if not (followed and self._past_help(lost) and later._past_help(kept)):
            return ""
        self._before, self._held = kept, still_open
        return text

    def _past_help(self, tokens: Sequence[int]) -> bool:
        """Is there no end of these tokens, up to an unfinished character's, before which all is whole?"""
        return all(self._beyond(tokens[: len(tokens) - cut]).endswith(_UNFINISHED) for cut in range(_OPEN + 1))

    def _beyond(self, tokens: Sequence[int]) -> str:
        """What these tokens add to the text of the last piece."""
        before, both = (
            text_of(part, self._tokenizer, special=self._special) for part in (self._before, [*self._before, *tokens])
        )
        return both[len(before) :]


def text_of(tokens: Sequence[int], tokenizer: Any, *, special: bool = False) -> str:
    """The text of tokens, special ones left out unless asked for, as ``Backbone.generate`` gives it."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=not special))
