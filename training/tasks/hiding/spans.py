"""Hiding spans of a text, as encoder-decoders are pretrained: the decoder writes what the encoder wasn't shown.

T5's span corruption (Raffel et al. 2020, sections 3.1.4 and 3.3): each span becomes a sentinel, and the target holds
the spans, each behind its sentinel, and a last sentinel. BART's text infilling (Lewis et al. 2020, section 2.2): each
span, of a length that is drawn from a Poisson distribution, becomes one mask token, and the target is the whole text.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from lorary.adapters.text.gaps import sentinel_ids
from lorary.hub.errors import TrainingError
from lorary.training.fitting.losses import IGNORED
from lorary.training.recipe.corpus import MEAN_SPAN
from lorary.training.tasks.forms import Collator, EncoderDecoder
from lorary.training.tasks.hiding.hider import Hider
from lorary.training.tasks.rows.token_rows import Frame, Stream, TokenRows, frame_of, leave_out

_NOTHING = Frame((), ())

Feature = dict[str, Any]
Spans = list[tuple[int, int]]


class SpanHider(Hider):
    """Hides spans of tokens.

    Args:
        tokenizer: the base's.
        density: the share of tokens that are hidden.
        mean_span: the mean length of a span, in tokens.
        frame: what stands around a text that the base reads; what the tokenizer says unless given.
    """

    def __init__(self, tokenizer: Any, density: float, mean_span: float, frame: Frame | None = None) -> None:
        self.density, self.mean_span = density, mean_span
        self.frame = frame_of(tokenizer) if frame is None else frame

    @abstractmethod
    def lengths(self, tokens: int, random: np.random.Generator) -> list[int]:
        """The lengths of the spans that are hidden of so many tokens, in the text's order."""

    def spans(self, tokens: int, random: np.random.Generator) -> Spans:
        """Which tokens are hidden: a begin and an end for each span, in order, with a token between any two.

        All ways to put spans of these lengths are equally likely.
        """
        if not tokens:
            return []
        lengths = self.lengths(tokens, random)
        kept = tokens - sum(lengths)
        # Parts of at least one, of which the first and the last may be none.
        between = _parts(kept + 2, len(lengths) + 1, random)
        between[0] -= 1
        found, place = [], 0
        for length, gap in zip(lengths, between, strict=False):
            place += gap
            found.append((place, place + length))
            place += length
        return found


class SpanCorruption(SpanHider):
    """T5's: each span becomes a sentinel, and is written behind it.

    Documents are joined without a separator, as T5's own were, and control tokens that a text happens to spell are left
    out of it. A row of a given length has always as many spans and hidden tokens.

    Raises:
        TrainingError: the tokenizer has no sentinels, or no end of text.
    """

    def __init__(self, tokenizer: Any, density: float, mean_span: float, frame: Frame | None = None) -> None:
        super().__init__(tokenizer, density, mean_span, frame)
        self.sentinels = sentinel_ids(tokenizer)
        self._end = tokenizer.eos_token_id
        if not self.sentinels or self._end is None:
            raise TrainingError("the base's tokenizer has no sentinels (<extra_id_0>, ...) or no end-of-text token")
        self.never = frozenset((*tokenizer.all_special_ids, *self.sentinels)) - {tokenizer.unk_token_id}

    def cleaned(self, stream: Stream) -> Stream:
        """Without control tokens: a sentinel in the text would be taken for a gap."""
        return leave_out(stream, self.never)

    def room(self, max_length: int) -> int:
        """The most tokens of which neither what is read nor what is written is longer than ``max_length``.

        Raises:
            TrainingError: there are too few sentinels for them.
        """
        tokens = max_length  # with its spans hidden that is shorter, or as long
        while all(size <= max_length for size in self._sizes(tokens + 1)):
            tokens += 1
        while tokens > 1 and any(size > max_length for size in self._sizes(tokens)):
            tokens -= 1
        spans = self._counts(tokens)[1]
        if spans >= len(self.sentinels):
            raise TrainingError(
                f"training.max_length {max_length} makes {spans} spans, and the base's tokenizer has sentinels for "
                f"{len(self.sentinels) - 1}; lower it, or raise training.mean_span"
            )
        return tokens

    def lengths(self, tokens: int, random: np.random.Generator) -> list[int]:
        """As many tokens as the density says, in spans that are any parts of them."""
        hidden, spans = self._counts(tokens)
        return _parts(hidden, spans, random)

    def hide(self, ids: Sequence[int], words: Sequence[int] | None, random: np.random.Generator) -> Feature:
        """What is read and what is written."""
        read, written = list(self.frame.before), list[int]()
        place = 0
        for sentinel, (start, end) in zip(self.sentinels, spans := self.spans(len(ids), random), strict=False):
            read += (*ids[place:start], sentinel)
            written.append(sentinel)
            written += ids[start:end]
            place = end
        read += (*ids[place:], *self.frame.after)
        written += (self.sentinels[len(spans)], self._end)
        return {"input_ids": read, "attention_mask": [1] * len(read), "labels": written}

    @property
    def untold(self) -> frozenset[int]:
        """None: sentinels are written too."""
        return frozenset()

    def counted(self, rows: TokenRows) -> Iterable[Sequence[int]]:
        """What is written of each row, sentinels among it."""
        return (self.fixed(rows.row(place), None)["labels"] for place in range(len(rows)))

    def _counts(self, tokens: int) -> tuple[int, int]:
        """How many tokens of so many are hidden, and in how many spans."""
        hidden = max(1, min(round(tokens * self.density), tokens - 1))
        spans = max(1, round(hidden / self.mean_span))
        return hidden, min(spans, hidden, tokens - hidden + 1)

    def _sizes(self, tokens: int) -> tuple[int, int]:
        """How long what is read and what is written are."""
        hidden, spans = self._counts(tokens)
        return tokens - hidden + spans + self.frame.size, hidden + spans + 2


class TextInfilling(SpanHider):
    """BART's: each span becomes one mask token, a span of no token too; the whole text is written.

    Special tokens are never hidden: a span that they stand in falls into two. What is read is never longer than the
    text: of spans without a token there are as many as that allows. Rows have ``hidden``, the places of the labels that
    are hidden: the others are learned too, but are given, and say nothing of how well the text is known.

    Raises:
        TrainingError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: Any, density: float, mean_span: float, frame: Frame | None = None) -> None:
        super().__init__(tokenizer, density, mean_span, frame)
        self._mask = tokenizer.mask_token_id
        if self._mask is None:
            raise TrainingError("the base's tokenizer has neither sentinels (<extra_id_0>, ...) nor a mask token")
        self.never = frozenset(tokenizer.all_special_ids)
        separator = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
        self.between = _NOTHING if separator is None else Frame((), (separator,))
        self.around = self.frame

    def lengths(self, tokens: int, random: np.random.Generator) -> list[int]:
        """Drawn until as many tokens are hidden as the density says; the last is cut to that."""
        hidden = max(1, round(tokens * self.density))
        found: list[int] = []
        while sum(found) < hidden:
            found.append(min(int(random.poisson(self.mean_span)), hidden - sum(found)))
        while len(found) > hidden:
            found.remove(0)
        most = tokens - hidden + 1  # that have a token between them
        return found if len(found) <= most else _parts(hidden, most, random)

    def hide(self, ids: Sequence[int], words: Sequence[int] | None, random: np.random.Generator) -> Feature:
        """What is read, and the text."""
        places = [place for place, token in enumerate(ids) if token not in self.never]
        hidden: list[int] = []
        masked: list[int] = []  # before these tokens a mask stands, for tokens that are hidden
        inserted: list[int] = []  # or for none
        for start, end in self.spans(len(places), random):
            own = places[start:end]
            hidden += own
            masked += [place for place in own if place - 1 not in own]
            if not own:
                inserted.append(places[start] if start < len(places) else places[-1] + 1)
        before = {*masked, *inserted[: len(hidden) - len(masked)]}
        read: list[int] = []
        gone = set(hidden)
        for place in range(len(ids) + 1):
            if place in before:
                read.append(self._mask)
            if place < len(ids) and place not in gone:
                read.append(ids[place])
        return {"input_ids": read, "attention_mask": [1] * len(read), "labels": list(ids), "hidden": hidden}


def span_hider(tokenizer: Any, density: float | None, mean_span: float | None, frame: Frame | None = None) -> SpanHider:
    """That of a base: span corruption where its tokenizer has sentinels, else text infilling; by default the papers'
    shares of hidden tokens, 15 % and 30 %.

    Raises:
        TrainingError: the tokenizer has what neither needs.
    """
    mean = mean_span or MEAN_SPAN
    if sentinel_ids(tokenizer):
        return SpanCorruption(tokenizer, density or 0.15, mean, frame)
    return TextInfilling(tokenizer, density or 0.3, mean, frame)


def measured_labels(feature: Feature) -> list[int]:
    """A row's labels, those :data:`IGNORED` that a text with gaps gives away."""
    labels: list[int] = feature["labels"]
    if "hidden" not in feature:
        return labels
    hidden = set(feature["hidden"])
    return [token if place in hidden else IGNORED for place, token in enumerate(labels)]


def span_collator(form: EncoderDecoder, tokenizer: Any) -> Collator:
    """Pads rows of a :class:`SpanHider`."""
    pad = form.collator(tokenizer)
    return lambda rows: pad([{name: row[name] for name in row if name != "hidden"} for row in rows])


def _parts(total: int, count: int, random: np.random.Generator) -> list[int]:
    """``count`` whole numbers of at least 1 that are ``total`` together, all such equally likely."""
    cuts = np.sort(random.choice(total - 1, count - 1, replace=False)) + 1 if count > 1 else np.zeros(0, dtype=int)
    return np.diff([0, *cuts.tolist(), total]).tolist()
