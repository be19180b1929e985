"""Token ids of many documents, in one array: cut into blocks of equal length, or kept as a row for each document.

A Python list takes eight to thirty-six bytes for a token; an array four. A corpus is held once, and a row is made when
it is asked for.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from lorary.hub.errors import DataError
from lorary.training.data import Example

_CHARACTERS = 1 << 20  # that are tokenized at once
_PROBE = "a"


@dataclass(frozen=True)
class Frame:
    """What a tokenizer puts before and after a text: ``[CLS]`` and ``[SEP]``, a beginning of text, or nothing."""

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def size(self) -> int:
        """How many tokens that are."""
        return len(self.before) + len(self.after)


def frame_of(tokenizer: Any) -> Frame:
    """The special tokens that a tokenizer puts around a text, asked of a text of one letter."""
    framed = list(tokenizer(_PROBE)["input_ids"])
    bare = list(tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    start = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
    return Frame(tuple(framed[:start]), tuple(framed[start + len(bare) :]))


@dataclass(frozen=True)
class TokenRows:
    """Rows of token ids, ``ids[ends[i]:ends[i + 1]]`` each; ``first`` is the index of the document that row begins in.

    ``begins``, where it was asked for, is 1 for each token that begins a word and for each special one.
    """

    ids: array[int]
    ends: array[int]
    first: array[int]
    begins: array[int] | None = None

    def __len__(self) -> int:
        return len(self.ends) - 1

    def row(self, index: int) -> list[int]:
        """A row's token ids."""
        return self.ids[self.ends[index] : self.ends[index + 1]].tolist()

    def words(self, index: int) -> list[int]:
        """Which of a row's tokens begin a word."""
        assert self.begins is not None
        return self.begins[self.ends[index] : self.ends[index + 1]].tolist()


@dataclass
class Stream:
    """Documents as one array of tokens without special ones; ``ends`` is where each one ends, beginning with 0."""

    ids: array[int]
    ends: array[int]
    begins: array[int] | None

    @property
    def lengths(self) -> list[int]:
        """The documents' lengths, in tokens."""
        return [end - start for start, end in pairwise(self.ends)]


def tokenize(examples: Sequence[Example], tokenizer: Any, *, words: bool = False) -> Stream:
    """The tokens of all documents, a megabyte of text at a time; ``words``: also which tokens begin a word."""
    stream = Stream(array("i"), array("q", [0]), array("b") if words else None)
    for texts in _batches(examples):
        encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for number, ids in enumerate(encoded["input_ids"]):
            stream.ids.extend(ids)
            stream.ends.append(len(stream.ids))
            if stream.begins is not None:
                places = [-1, *encoded.word_ids(number)]
                stream.begins.extend(int(here is None or here != before) for before, here in pairwise(places))
    return stream


def blocks(stream: Stream, length: int, document: Frame, block: Frame) -> TokenRows:
    """All documents in a row, each in its frame, cut into blocks of at most ``length`` tokens, each in its frame.

    The last block may be shorter; one of a single token is left out. No token is lost otherwise, and none stands twice.

    Raises:
        DataError: there aren't two tokens in all.
    """
    joined, owners = array("i"), array("q")
    begins = array("b") if stream.begins is not None else None
    for start, end in pairwise(stream.ends):
        joined.extend((*document.before, *stream.ids[start:end], *document.after))
        if begins is not None and stream.begins is not None:
            begins.extend([1] * len(document.before))
            begins.extend(stream.begins[start:end])
            begins.extend([1] * len(document.after))
        owners.append(len(joined))
    room = length - block.size
    starts = [start for start in range(0, len(joined), room) if len(joined) - start > 1]
    if not starts:
        raise DataError("rows", ["the text is too short: there aren't two tokens in all"])
    rows = TokenRows(array("i"), array("q", [0]), array("q"), array("b") if begins is not None else None)
    for start in starts:
        _append(rows, joined[start : start + room], block, begins[start : start + room] if begins else None)
        rows.first.append(bisect_right(owners, start))
    return rows


def leave_out(stream: Stream, tokens: Collection[int]) -> Stream:
    """A stream without certain tokens."""
    ids = np.frombuffer(stream.ids, dtype=np.intc)
    kept = ~np.isin(ids, sorted(tokens))
    if kept.all():
        return stream
    before = np.concatenate([[0], np.cumsum(kept)])
    begins = (
        stream.begins if stream.begins is None else array("b", np.frombuffer(stream.begins, np.int8)[kept].tobytes())
    )
    return Stream(array("i", ids[kept].tobytes()), array("q", before[list(stream.ends)].tolist()), begins)


def separate(stream: Stream, length: int, frame: Frame) -> TokenRows:
    """A row for each document, cut to ``length`` tokens with the frame around it."""
    rows = TokenRows(array("i"), array("q", [0]), array("q"), array("b") if stream.begins is not None else None)
    room = length - frame.size
    for index, (start, end) in enumerate(pairwise(stream.ends)):
        end = min(end, start + room)
        _append(rows, stream.ids[start:end], frame, stream.begins[start:end] if stream.begins is not None else None)
        rows.first.append(index)
    return rows


def _append(rows: TokenRows, content: array[int], frame: Frame, begins: array[int] | None) -> None:
    rows.ids.extend(frame.before)
    rows.ids.extend(content)
    rows.ids.extend(frame.after)
    rows.ends.append(len(rows.ids))
    if rows.begins is not None and begins is not None:
        rows.begins.extend([1] * len(frame.before))
        rows.begins.extend(begins)
        rows.begins.extend([1] * len(frame.after))


def _batches(examples: Sequence[Example]) -> Iterator[list[str]]:
    texts: list[str] = []
    size = 0
    for example in examples:
        texts.append(example.values["text"])
        size += len(texts[-1])
        if size >= _CHARACTERS:
            yield texts
            texts, size = [], 0
    if texts:
        yield texts
