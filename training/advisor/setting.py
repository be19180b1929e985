"""A setting that is advised, and a recipe with such settings put in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorary.training.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """A recipe's setting by its dotted key, and the measurement that speaks for it."""

    key: str
    value: Any
    why: str


def with_settings(recipe: Recipe, settings: Iterable[Setting]) -> Recipe:
    """The recipe with settings put in, checked as a whole.

    Raises:
        RecipeError: they contradict what it says.
    """
    values = {setting.key: setting.value for setting in settings}
    if "training.folds" in values:  # every row is held out once
        values["data.test_size"] = None
    return recipe.changed(values)
