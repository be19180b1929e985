"""What each class weighs in the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from lorary.training.recipe import Recipe

if TYPE_CHECKING:
    from lorary.training.fitting.losses import Loss

ClassWeights = str | Mapping[str, float] | None
"""``balanced``, a weight for some labels (1 for all others), or None."""


def class_weights(setting: ClassWeights, labels: Sequence[str], counts: Sequence[int]) -> tuple[float, ...] | None:
    """A weight for each label; ``balanced`` is scikit-learn's n / (classes * count), its mean over the rows 1.

    A label without a row weighs 1: there is nothing to balance.

    Args:
        counts: how often each label is a target in the training rows.
    """
    if isinstance(setting, Mapping):
        return tuple(float(setting.get(label, 1.0)) for label in labels)
    if setting is None:
        return None
    present = sum(count > 0 for count in counts)
    return tuple(sum(counts) / (present * count) if count else 1.0 for count in counts)


def positive_weights(
    setting: ClassWeights, labels: Sequence[str], counts: Sequence[int], rows: int
) -> tuple[float, ...] | None:
    """What a row that has a label weighs against one that hasn't (torch's ``pos_weight``), for each label.

    ``balanced`` is the number of rows without the label by that of rows with it; 1 where either is 0.
    """
    if setting is None or isinstance(setting, Mapping):
        return class_weights(setting, labels, counts)
    return tuple((rows - count) / count if 0 < count < rows else 1.0 for count in counts)


def weighed(recipe: Recipe, labels: Sequence[str], counts: Sequence[int]) -> Loss | None:
    """Cross entropy as a recipe wants it; None where that is the model's own. ``counts`` as :func:`class_weights`."""
    training = recipe.training
    weight = class_weights(training.class_weights, labels, counts)
    if weight is None and not training.label_smoothing:
        return None
    from lorary.training.fitting.losses import CrossEntropy

    return CrossEntropy(weight, training.label_smoothing)
