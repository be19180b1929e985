"""What rows look like, counted: labels, lengths, how the tokenizer takes them, what stands twice."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorary.training.data import Example, Examples
from lorary.training.tasks import Encoded

_LONG_WORDS = 12  # characters between blanks, from which on the script has no blanks between words
_LABELS = frozenset({"label", "answer_start", "score"})


@dataclass(frozen=True)
class Lengths:
    """Tokens of the rows before any was cut: in the middle, of 99 in 100 at most, the longest; the share that is cut
    to ``most``."""

    middle: int
    nearly_all: int
    longest: int
    cut: float
    most: int


@dataclass(frozen=True)
class RowFacts:
    """``labels``: how many training rows have each label (of tagging: words), the most frequent first; none where a
    task has no labels.

    ``lengths`` is None of tasks that cut text into blocks. ``tokens_per_word`` is None of texts without blanks between
    words; ``unknown`` is the share of tokens that stand for what the tokenizer lacks. ``repeated`` training rows ask
    the same as one before them and ``contradicting`` of them want another answer, which is counted where there is one
    right answer: of labels and tags.
    """

    train: int
    validation: int
    held_out: int
    labels: Mapping[str, int]
    lengths: Lengths | None
    tokens_per_word: float | None
    unknown: float
    repeated: int
    contradicting: int

    @property
    def imbalance(self) -> float:
        """How many times more frequent the most frequent label is than the rarest."""
        counts = list(self.labels.values())
        return counts[0] / counts[-1] if counts and counts[-1] else 1.0


def unlike(examples: Sequence[Example]) -> tuple[tuple[Example, ...], int, int]:
    """The rows that ask something new, and how many don't, and how many of those want another answer.

    All of them where one question may have several answers.
    """
    if not examples or not examples[0].values.keys() & {"label", "tags"}:
        return tuple(examples), 0, 0
    first: dict[bytes, Example] = {}
    repeated = contradicting = 0
    for example in examples:
        other = first.setdefault(example.inputs, example)
        if other is not example:
            repeated += 1
            contradicting += other.digest != example.digest
    return tuple(first.values()), repeated, contradicting


def look_at(data: Examples, encoded: Encoded, tokenizer: Any, most: int, repeated: int, contradicting: int) -> RowFacts:
    """Count.

    Args:
        data: all rows.
        encoded: some of the training rows, by which lengths and words are told.
        tokenizer: the base's.
        most: the most tokens of a row.
        repeated: see :class:`RowFacts`, as ``contradicting``.
    """
    per_word, unknown = _words(encoded.examples, tokenizer)
    return RowFacts(
        len(data.train), len(data.validation), len(data.test), _labels(data), _lengths(encoded, most), per_word,
        unknown, repeated, contradicting,
    )  # fmt: skip


def _labels(data: Examples) -> Mapping[str, int]:
    counts: Counter[str] = Counter()
    for example in data.train:
        value = example.values.get("tags", example.values.get("label"))
        if data.labels is None or value is None or isinstance(value, float):
            continue
        counts.update([value] if isinstance(value, str) else value)
    return dict(counts.most_common())


def _lengths(encoded: Encoded, most: int) -> Lengths | None:
    if not encoded.lengths:
        return None
    full = sorted(length.full for length in encoded.lengths)
    cut = sum(length.cut > 0 for length in encoded.lengths) / len(full)
    return Lengths(full[len(full) // 2], full[int(0.99 * (len(full) - 1))], full[-1], cut, most)


def _words(examples: Sequence[Example], tokenizer: Any) -> tuple[float | None, float]:
    """Tokens to a word (Rust et al. 2021), and the share of them that stand for what the tokenizer lacks."""
    texts = [text for example in examples for text in _texts(example)]
    words = [word for text in texts for word in re.findall(r"\S+", text)]
    ids = [token for text in texts for token in tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]]
    unknown = ids.count(tokenizer.unk_token_id) / max(1, len(ids)) if tokenizer.unk_token_id is not None else 0.0
    if not words or statistics.fmean(map(len, words)) > _LONG_WORDS:
        return None, unknown
    return len(ids) / len(words), unknown


def _texts(example: Example) -> list[str]:
    """A row's texts, given and wanted ones; not its labels."""
    texts = [value for role, value in example.values.items() if isinstance(value, str) and role not in _LABELS]
    texts += [" ".join(example.values["tokens"])] if "tokens" in example.values else []
    turns = example.values.get("messages") or ()
    return texts + [turn["content"] for turn in turns if isinstance(turn.get("content"), str)]
