"""Text from tokens as they come, whole characters only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNFINISHED = "\ufffd"  # what decoders put for bytes that make no character (yet)


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
            return ""
        self._before, self._held = self._held, []
        return piece

    def rest(self) -> str:
        """What is held back: at the end of a text, an unfinished character."""
        return self._beyond(self._held)

    def would_add(self, token: int) -> str:
        """What a token would add to the pieces so far; a sign of its own where it leaves a character unfinished."""
        added = self._beyond([*self._held, token])
        return _UNFINISHED if added.endswith(_UNFINISHED) else added

    def _beyond(self, tokens: Sequence[int]) -> str:
        """What these tokens add to the text of the last piece."""
        before, both = (
            text_of(part, self._tokenizer, special=self._special) for part in (self._before, [*self._before, *tokens])
        )
        return both[len(before) :]


def text_of(tokens: Sequence[int], tokenizer: Any, *, special: bool = False) -> str:
    """The text of tokens, special ones left out unless asked for, as ``Backbone.generate`` gives it."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=not special))
