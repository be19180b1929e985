"""What the metrics of classifiers share: each label's score for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

Scores = tuple[float, ...]
"""A row's score for each label, in the order of the labels."""


def stacked(outcomes: Sequence[Scores]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows' scores as one array, [rows, labels]."""
    return np.asarray(outcomes, dtype=np.float64)


def area_under_curves(truth: Sequence[Sequence[bool]], scores: np.ndarray[Any, Any]) -> dict[str, float]:
    """``auc``: the area under each label's ROC curve (scikit-learn's ``roc_auc_score``), their mean over the labels.

    Args:
        truth: does a row have a label, [rows, labels].
        scores: [rows, labels].

    Returns:
        Nothing where a label's rows are all of one kind, since its curve is undefined then.
    """
    from sklearn.metrics import roc_auc_score

    marks = np.asarray(truth, dtype=bool)
    if not (marks.any(0) & ~marks.all(0)).all():
        return {}
    return {"auc": float(roc_auc_score(marks, scores, average="macro"))}
