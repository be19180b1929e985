"""Text from tokens as they come, whole characters only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """Turns the tokens of one text into pieces of it; a character of several tokens comes with the last of them.

    A tokenizer without a fast backend gives its text in one piece, at the end.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._stream = DecodeStream(skip_special_tokens=True)
        self._given = ""

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens complete, empty while a character is unfinished."""
        if self._backend is None:
            return ""
        piece = "".join(self._stream.step(self._backend, token) or "" for token in tokens)
        self._given += piece
        return piece

    def rest(self, tokens: Sequence[int]) -> str:
        """What was held back of the text of all ``tokens``: an unfinished character at its end."""
        text = text_of(tokens, self._tokenizer)
        return text[len(self._given) :] if text.startswith(self._given) else ""


def text_of(tokens: Sequence[int], tokenizer: Any) -> str:
    """The text of tokens, special ones left out, as ``Backbone.generate`` gives it."""
    return str(tokenizer.decode(list(tokens), skip_special_tokens=True))
