"""Settings of labels that only the data can contradict: weights of labels that aren't there, for instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorary.hub.errors import DataError
from lorary.hub.manifest import MULTI_LABEL, REGRESSION
from lorary.training.recipe import Recipe
from lorary.training.recipe.raw import nearest, some


def check_weighing(recipe: Recipe, labels: Sequence[str] | None, problem: str | None) -> None:
    """Do the recipe's loss settings fit the labels that were found?

    Raises:
        DataError: a weight for an unknown label, or a setting that this kind of labels has no use for.
    """
    training = recipe.training
    problems = []
    if problem == REGRESSION and training.class_weights is not None:
        problems.append("training.class_weights: the labels are numbers (regression), which have no classes")
    elif isinstance(training.class_weights, Mapping):
        problems += _unknown("training.class_weights", training.class_weights, labels or ())
    if training.threshold is not None and problem != MULTI_LABEL:
        problems.append(f"training.threshold: only rows with several labels have one; the rows are {problem}")
    elif isinstance(training.threshold, Mapping):
        problems += _unknown("training.threshold", training.threshold, labels or ())
    if problem in (REGRESSION, MULTI_LABEL) and training.label_smoothing:
        problems.append(f"training.label_smoothing: only one label of several can be smoothed; the rows are {problem}")
    if problems:
        raise DataError("labels", problems)


def _unknown(key: str, table: Mapping[str, float], labels: Sequence[str]) -> list[str]:
    return [
        f"{key}: unknown label {label!r}; there are {some(labels)}{nearest(label, labels)}"
        for label in table
        if label not in labels
    ]
