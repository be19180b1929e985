"""What the ways to hide parts of a text have in common: rows of documents, and the same parts hidden when measured."""

from __future__ import annotations

import zlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lorary.training.data import Example
from lorary.training.tasks.rows.token_rows import Frame, Stream, TokenRows, blocks, separate, tokenize

Feature = dict[str, Any]


class Hider(ABC):
    """Hides parts of rows of tokens; the model learns to tell them.

    ``never`` are the tokens that aren't hidden. Rows stand in ``around``, and where documents are joined each in
    ``between``. ``whole_words``: rows have to say where words begin.
    """

    never: frozenset[int]
    around: Frame = Frame((), ())
    between: Frame = Frame((), ())
    whole_words: bool = False

    @abstractmethod
    def hide(self, ids: Sequence[int], words: Sequence[int] | None, random: np.random.Generator) -> Feature:
        """A row with parts hidden by ``random``, at least one of them: a mean over nothing would be no number."""

    def fixed(self, ids: Sequence[int], words: Sequence[int] | None) -> Feature:
        """A row with the parts hidden that are always hidden in this row.

        They depend on nothing but the row, so that figures before and after training, of several seeds and of a
        reloaded adapter are about the same tokens.
        """
        return self.hide(ids, words, np.random.default_rng(zlib.crc32(array("i", ids).tobytes())))

    def can_hide(self, ids: Sequence[int]) -> bool:
        """Is there a token that may be hidden?"""
        return any(token not in self.never for token in ids)

    @property
    def untold(self) -> frozenset[int]:
        """Tokens that are never to be told."""
        return self.never

    def counted(self, rows: TokenRows) -> Iterable[Sequence[int]]:
        """The tokens whose frequencies a model without any notion of the text goes by."""
        return [rows.ids]

    def tokenize(self, documents: Sequence[Example], tokenizer: Any) -> Stream:
        """Documents as tokens without special ones around them."""
        return self.cleaned(tokenize(documents, tokenizer, words=self.whole_words))

    def cleaned(self, stream: Stream) -> Stream:
        """What of the documents' tokens is kept: all of them unless a way to hide says otherwise."""
        return stream

    def room(self, max_length: int) -> int:
        """The most tokens of a row of which the model then reads at most ``max_length``."""
        return max_length

    def joined(self, stream: Stream, max_length: int) -> TokenRows:
        """Documents one after the other, cut into blocks.

        Raises:
            DataError: there isn't enough text.
        """
        return blocks(stream, self.room(max_length), self.between, self.around)

    def apart(self, stream: Stream, max_length: int) -> TokenRows:
        """A row for each document, cut."""
        return separate(stream, self.room(max_length), self.around)
