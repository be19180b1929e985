"""Gaps in a text, as encoder-decoders are pretrained to fill them.

T5 reads a sentinel in each gap and writes what fills it behind the same sentinel, a last sentinel at the end (Raffel et
al. 2020, section 3.1.4). BART reads the mask token there and writes the whole text (Lewis et al. 2020, section 2.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

from lorary.hub.errors import UsageError

_ANCHOR = 3  # so many of the text's next tokens say that a gap is over: one alone may well fill it


def sentinel_ids(tokenizer: Any) -> tuple[int, ...]:
    """The ids of ``<extra_id_0>``, ``<extra_id_1>``, ... as far as the tokenizer has them; mT5's begin with a space."""
    return tuple(_sentinels(tokenizer))


def _sentinels(tokenizer: Any) -> Iterator[int]:
    for number in count():
        names = (f"<extra_id_{number}>", f"\u2581<extra_id_{number}>")
        found = (tokenizer.convert_tokens_to_ids(name) for name in names)
        known = [token for token in found if token is not None and token != tokenizer.unk_token_id]
        if not known:
            return
        yield known[0]


@dataclass(frozen=True)
class Step:
    """What a decoder may write next: ``token``, and where ``free`` any token that may fill a gap.

    ``given``: the token is the text's own, so that nothing is to be weighed.
    """

    token: int | None
    free: bool = False
    given: bool = False


@dataclass(frozen=True)
class Gapped:
    """A text with gaps, and what the decoder is to make of it.

    ``parts`` are the text's tokens around its gaps, one more than there are gaps; ``kept`` those that the decoder
    writes around what fills them. ``shortest`` to ``longest`` tokens fill a gap, which ends with the first ``anchor``
    tokens of what comes next; the text ends with ``end``.
    """

    parts: tuple[tuple[int, ...], ...]
    kept: tuple[tuple[int, ...], ...]
    anchor: int
    shortest: int
    longest: int
    end: int

    @property
    def most(self) -> int:
        """The most tokens that the decoder writes."""
        return sum(map(len, self.kept)) + self.longest * (len(self.kept) - 1) + 1

    def step(self, written: Sequence[int]) -> Step:
        """What comes after the tokens that are ``written``, the decoder's start not among them."""
        ends, place = self._ends(written)
        here = len(ends)  # so many gaps are filled
        if len(written) < place:
            part = self.kept[here]
            # Behind the last gap nothing is left to be said that isn't known.
            over = here == len(self.kept) - 1 and len(written) >= ends[-1] + min(self.anchor, len(part))
            return Step(self.end if over else part[len(written) - place + len(part)], given=True)
        if here == len(self.kept) - 1:
            return Step(self.end, given=True)
        anchor = self.kept[here + 1][: self.anchor]
        filled = list(written[place:])
        begun = next(
            size
            for size in range(min(len(anchor), len(filled)), -1, -1)
            if filled[len(filled) - size :] == [*anchor[:size]]
        )
        own = len(filled) - begun
        return Step(anchor[begun] if own >= self.shortest else None, free=len(filled) < self.longest)

    def fillings(self, written: Sequence[int]) -> list[tuple[int, ...]]:
        """What fills each gap."""
        ends, place = self._ends(written)
        starts = [len(self.kept[0])]
        starts += [end + len(part) for end, part in zip(ends, self.kept[1:], strict=False)]
        found = [tuple(written[start:end]) for start, end in zip(starts, ends, strict=False)]
        if len(ends) < len(self.kept) - 1:
            found.append(tuple(written[place:]))
        return found + [()] * (len(self.kept) - 1 - len(found))

    def whole(self, fillings: Sequence[Sequence[int]]) -> list[int]:
        """The text's tokens with its gaps filled."""
        first, *others = self.parts
        return [*first, *(token for filling, part in zip(fillings, others, strict=True) for token in (*filling, *part))]

    def _ends(self, written: Sequence[int]) -> tuple[list[int], int]:
        """Where what fills each gap ends, of those that are over, and where the part that follows the last does."""
        ends: list[int] = []
        place = len(self.kept[0])
        for part in self.kept[1:]:
            anchor = list(part[: self.anchor])
            last = len(written) - len(anchor)
            end = next((at for at in range(place, last + 1) if list(written[at : at + len(anchor)]) == anchor), None)
            if end is None:
                break
            ends.append(end)
            place = end + len(part)
        return ends, place


def find_gaps(ids: Sequence[int], tokenizer: Any, gaps: str, longest: int) -> Gapped:
    """A tokenized text by its gaps.

    Args:
        ids: the tokens that the encoder reads.
        tokenizer: that of the row.
        gaps: what stands in a gap (:data:`lorary.hub.manifest.GAPS`).
        longest: the most tokens that fill one; behind a sentinel there is at least one.

    Raises:
        UsageError: there are none, sentinels are out of order, or the tokenizer has no such thing.
    """
    if gaps == "sentinels":
        return _between_sentinels(ids, tokenizer, longest)
    mask, end = tokenizer.mask_token_id, tokenizer.eos_token_id
    if mask is None:
        raise UsageError("this backbone's tokenizer has no mask token, so there is nothing to fill")
    parts = _split(ids, frozenset((mask,)))
    if len(parts) == 1:
        raise UsageError(f"a row has no {tokenizer.mask_token} within its first {len(ids)} tokens, so nothing to fill")
    last = parts[-1][: parts[-1].index(end)] if end in parts[-1] else parts[-1]
    return Gapped(parts, (*parts[:-1], (*last, end)), _ANCHOR, 0, longest, end)


def _between_sentinels(ids: Sequence[int], tokenizer: Any, longest: int) -> Gapped:
    sentinels = sentinel_ids(tokenizer)
    if not sentinels:
        raise UsageError("this backbone's tokenizer has no sentinels (<extra_id_0>, ...), so there is nothing to fill")
    parts = _split(ids, frozenset(sentinels))
    found = [token for token in ids if token in set(sentinels)]
    if not found:
        raise UsageError(f"a row has no <extra_id_0> within its first {len(ids)} tokens, so there is nothing to fill")
    if found != list(sentinels[: len(found)]) or len(found) == len(sentinels):
        shown = " ".join(f"<extra_id_{sentinels.index(token)}>" for token in found[:5])
        raise UsageError(
            f"a row's gaps are {shown}: expected <extra_id_0>, <extra_id_1>, ... in this order, "
            f"{len(sentinels) - 1} at most"
        )
    return Gapped(
        parts, tuple((token,) for token in sentinels[: len(found) + 1]), 1, 1, longest, tokenizer.eos_token_id
    )


def _split(ids: Sequence[int], marks: frozenset[int]) -> tuple[tuple[int, ...], ...]:
    parts: list[list[int]] = [[]]
    for token in ids:
        if token in marks:
            parts.append([])
        else:
            parts[-1].append(token)
    return tuple(map(tuple, parts))
