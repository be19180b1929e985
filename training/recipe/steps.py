"""As many epochs as make enough steps: few rows are soon gone through."""

from __future__ import annotations

import math

from lorary.training.recipe.schema import Recipe


def with_enough_epochs(recipe: Recipe, rows: int) -> Recipe:
    """The recipe with the epochs that ``training.min_steps`` asks for, where it has fewer.

    Args:
        recipe: as it is read.
        rows: how many training rows there are; steps are those of one process, since several share a step's rows.
    """
    training = recipe.training
    if training.min_steps is None or training.max_steps is not None:
        return recipe
    per_epoch = math.ceil(math.ceil(rows / training.batch_size) / training.gradient_accumulation)
    epochs = math.ceil(training.min_steps / per_epoch)
    if epochs <= training.epochs:
        return recipe
    return recipe.model_copy(update={"training": training.model_copy(update={"epochs": float(epochs)})})
