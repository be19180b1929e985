"""From which score on a row has a label, where it may have several: found on rows that weren't trained on.

A label that few rows have seldom gets a score of one half, though its F1 is best from a lower score on (Lipton et al.
2014, "Optimal Thresholding of Classifiers to Maximize F1 Measure"). Choosing each label's best score by itself (SCut,
Yang 2001, as scikit-learn's ``TunedThresholdClassifierCV`` does for one label) fits the noise where few rows have it.
So a label's own threshold counts the more, the more rows have the label: it is drawn towards the one that is best for
all labels together, and that towards one half.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lorary.adapters.predict.text_classification import THRESHOLD

Array = np.ndarray[Any, Any]

DRAWN = 10
"""With so many rows that have a label its own threshold counts one half. On made-up scores of eight labels that 1% to
35% of 30 to 300 validation rows have, this was better than one half, than each label's best, and than one for all."""

_DIGITS = 6


def tune_thresholds(scores: Array, truth: Array) -> tuple[float, ...]:
    """A threshold for each label, for the mean of the labels' F1.

    Args:
        scores: each label's score, from 0 to 1, [rows, labels].
        truth: does a row have a label, [rows, labels].
    """
    positives = truth.sum(0)
    shared = _drawn(_best_for_all(scores, truth), THRESHOLD, int(positives.sum()))
    columns = zip(scores.T, truth.T, positives, strict=True)
    return tuple(
        _drawn(_best(score, marks), shared, int(count)) if count else shared for score, marks, count in columns
    )


def _best(scores: Array, marks: Array) -> float:
    """The threshold with the highest F1, between two neighbouring scores."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    f1 = 2 * np.cumsum(marks[order]) / (np.arange(1, len(ranked) + 1) + marks.sum())
    following = np.append(ranked[1:], 0.0)
    f1[ranked == following] = 0.0  # equal scores aren't told apart
    place = int(f1.argmax())
    return float(ranked[place] + following[place]) / 2


def _best_for_all(scores: Array, truth: Array) -> float:
    """The one threshold with the highest mean of the labels' F1; of equals the nearest to one half."""
    candidates = np.unique(np.append(np.quantile(scores, np.linspace(0, 1, 201)), THRESHOLD))
    positives = truth.sum(0)

    def mean_f1(threshold: float) -> float:
        found = scores >= threshold
        right, counted = (found & truth).sum(0), found.sum(0) + positives
        return float(np.divide(2 * right, counted, out=np.zeros(right.shape), where=counted > 0).mean())

    # One after the other: thousands of labels and rows times all candidates are more than the memory holds.
    f1 = np.array([mean_f1(threshold) for threshold in candidates])
    best = candidates[f1 == f1.max()]
    return float(best[np.abs(best - THRESHOLD).argmin()])


def _drawn(own: float, towards: float, count: int) -> float:
    """Between ``own`` and ``towards`` in log-odds, the nearer to ``own`` the more rows speak for it."""
    share = count / (count + DRAWN)
    odds = share * _log_odds(own) + (1 - share) * _log_odds(towards)
    return float(f"{1 / (1 + math.exp(-odds)):.{_DIGITS}g}")


def _log_odds(value: float) -> float:
    held = min(max(value, 1e-6), 1 - 1e-6)
    return math.log(held / (1 - held))


def table_of(labels: Sequence[str], setting: float | dict[str, float] | None) -> tuple[float, ...]:
    """A threshold for each label, as a recipe gives them."""
    if isinstance(setting, dict):
        return tuple(setting.get(label, THRESHOLD) for label in labels)
    return (THRESHOLD if setting is None else setting,) * len(labels)
