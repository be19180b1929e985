"""How much of a task can be read off frozen states by a linear model (Alain and Bengio 2016), cross-validated.

The probe stands where the task's head would, so that the task itself makes outcomes and metrics of what it answers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lorary.hub.manifest import MULTI_LABEL, REGRESSION
from lorary.hub.metrics import lower_is_better
from lorary.training.advisor.states import tagged
from lorary.training.tasks import Encoded, Task

PENALTIES = (0.01, 0.1, 1.0)
"""Inverse strengths of the penalty (scikit-learn's C) that are tried, the strongest first."""

_NEVER = -1e4  # the logit of a label that a probe's rows didn't have


@dataclass(frozen=True)
class Measured:
    """What was made of each row, as the task's outcomes, and their score. Of a probe no row is one that it was fitted
    on, and ``penalty`` is scikit-learn's C."""

    outcomes: Sequence[Any]
    score: float
    penalty: float | None = None


def probe(
    task: Task, rows: Encoded, matrices: Sequence[Any], folds: Sequence[int], *, share: float = 1.0,
    balanced: bool = False, penalties: Sequence[float] = PENALTIES, scaled: bool = True,
) -> Measured:  # fmt: skip
    """Fit a linear model on all folds but one and answer that one's rows, fold by fold.

    Args:
        task: single-label, multi-label and numbers' text classification, or tagging.
        rows: encoded rows.
        matrices: of each row what is read off, [1, features], or [words, features] in tagging; arrays, tensors, or
            scipy's sparse ones.
        folds: each row's fold.
        share: fit on the first rows of each fold's complement alone, as many as this share of it.
        balanced: weigh labels against their frequency.
        penalties: the one whose answers are the best is taken.
        scaled: bring each feature to mean 0 and deviation 1 first; not for sparse ones.
    """
    tried = [_answer(task, rows, matrices, folds, share, balanced, penalty, scaled) for penalty in penalties]
    sign = -1 if lower_is_better(task.main_metric) else 1
    return max(tried, key=lambda one: sign * one.score)


def _answer(
    task: Task, rows: Encoded, matrices: Sequence[Any], folds: Sequence[int], share: float, balanced: bool,
    penalty: float, scaled: bool,
) -> Measured:  # fmt: skip
    logits: dict[int, Any] = {}
    targets = [_targets(task, feature) for feature in rows.features]
    for fold in sorted(set(folds)):
        fitted = [place for place, own in enumerate(folds) if own != fold]
        fitted = fitted[: max(2, round(len(fitted) * share))]
        asked = [place for place, own in enumerate(folds) if own == fold]
        train, test = _stack([matrices[place] for place in fitted]), _stack([matrices[place] for place in asked])
        if scaled:
            mean, deviation = train.mean(0), train.std(0) + 1e-6
            train, test = (train - mean) / deviation, (test - mean) / deviation
        found = _fit(task, train, np.concatenate([targets[place] for place in fitted]), test, penalty, balanced)
        start = 0
        for place in asked:
            size = matrices[place].shape[0]
            logits[place] = found[start : start + size]
            start += size
    outcomes = [task.outcome(_in_place(task, logits[place], row), row) for place, row in enumerate(rows.features)]
    return Measured(outcomes, task.main_score(outcomes, rows.golds), penalty)


def _targets(task: Task, feature: dict[str, Any]) -> Any:
    """A row's targets, [words] or [1] or [1, labels]."""
    labels = feature["labels"]
    if task.name == "token-classification":
        return np.asarray([labels[place] for place in tagged(labels)])
    return np.asarray([labels])


def _in_place(task: Task, logits: Any, feature: dict[str, Any]) -> torch.Tensor:
    """Logits where the task's head would have them: [classes], or [tokens, classes] in tagging."""
    found = torch.as_tensor(np.asarray(logits))
    if task.name != "token-classification":
        return found[0]
    whole = torch.zeros(len(feature["labels"]), found.shape[1], dtype=found.dtype)
    whole[tagged(feature["labels"])] = found
    return whole


def _stack(matrices: Sequence[Any]) -> Any:
    if isinstance(matrices[0], torch.Tensor):
        return torch.cat(list(matrices)).numpy()
    from scipy.sparse import vstack

    return vstack(matrices).tocsr()


def _fit(task: Task, train: Any, targets: Any, test: Any, penalty: float, balanced: bool) -> Any:
    """The logits of ``test`` [rows, labels]."""
    problem = getattr(task, "problem_type", None)
    if problem == REGRESSION:
        from sklearn.linear_model import Ridge

        mean, deviation = targets.mean(), targets.std() or 1.0
        fitted = Ridge(alpha=1 / penalty).fit(train, (targets - mean) / deviation)
        return (fitted.predict(test) * deviation + mean)[:, None]
    if problem == MULTI_LABEL:
        columns = [_classify(train, column.astype(int), test, 2, penalty, balanced) for column in targets.T]
        return np.stack([column[:, 1] - column[:, 0] for column in columns], axis=1)
    return _classify(train, targets, test, len(task.labels), penalty, balanced)


def _classify(train: Any, targets: Any, test: Any, count: int, penalty: float, balanced: bool) -> Any:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    logits = np.full((test.shape[0], count), _NEVER)
    there = np.unique(targets)
    if len(there) == 1:
        logits[:, there[0]] = 0.0
        return logits
    model = LogisticRegression(C=penalty, max_iter=200, class_weight="balanced" if balanced else None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a probe that is nearly there tells as much
        warnings.filterwarnings("ignore", "The number of unique classes", UserWarning)  # they are labels all the same
        found = model.fit(train, targets).decision_function(test)
    logits[:, there] = np.stack([np.zeros_like(found), found], axis=1) if found.ndim == 1 else found
    return logits
