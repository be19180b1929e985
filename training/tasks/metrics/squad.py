"""SQuAD's two measures (Rajpurkar et al. 2016), as the benchmark's evaluation script defines them."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

Measure = Callable[[str, str], float]

_PUNCTUATION = frozenset(string.punctuation)


def normalise(text: str) -> str:
    """Lower case, without ASCII punctuation and the words a, an, the, and with single blanks."""
    bare = "".join(letter for letter in text.lower() if letter not in _PUNCTUATION)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", bare).split())


def exact(answer: str, gold: str) -> float:
    """1.0 where both are the same once normalised, else 0.0."""
    return float(normalise(answer) == normalise(gold))


def overlap(answer: str, gold: str) -> float:
    """F1 of the words of both, each counted as often as it occurs; two empty ones agree."""
    found, wanted = normalise(answer).split(), normalise(gold).split()
    if not found or not wanted:
        return float(found == wanted)
    common = sum((Counter(found) & Counter(wanted)).values())
    return 2 * common / (len(found) + len(wanted))


def best(measure: Measure, answer: str, golds: Sequence[str]) -> float:
    """The best that an answer makes against any of its golds; one without golds has the empty answer as gold."""
    # As in the script: a gold of which normalising leaves nothing ("the") can't be matched by anything but silence.
    wanted = [gold for gold in golds if normalise(gold)] or [""]
    return max(measure(answer, gold) for gold in wanted)
