"""As many epochs as make enough steps: few rows are soon gone through."""

from __future__ import annotations

import math

from lorary.training.recipe.schema import Recipe


def steps_per_epoch(rows: int, batch_size: int, accumulation: int, processes: int = 1) -> int:
    """Optimizer steps that go through all rows once; ``batch_size`` is each process's."""
    return math.ceil(math.ceil(rows / (batch_size * processes)) / accumulation)


def with_enough_epochs(recipe: Recipe, rows: int, processes: int = 1) -> Recipe:
    """The recipe with the epochs that ``training.min_steps`` asks for, where it has fewer.

    Args:
        recipe: as it is read.
        rows: how many training rows there are.
        processes: how many share them.
    """
    training = recipe.training
    if training.min_steps is None or training.max_steps is not None:
        return recipe
    per_epoch = steps_per_epoch(rows, training.batch_size, training.gradient_accumulation, processes)
    epochs = math.ceil(training.min_steps / per_epoch)
    if epochs <= training.epochs:
        return recipe
    return recipe.model_copy(update={"training": training.model_copy(update={"epochs": float(epochs)})})
