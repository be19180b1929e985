"""A setting that is advised, and a recipe with such settings put in."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lorary.training.recipe import Recipe
from lorary.training.recipe.raw import RawRecipe, parse_recipe


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
    # Without the lines of a text that nobody has written.
    raw = RawRecipe(recipe.name, parse_recipe(recipe.given(), recipe.name).values)
    for setting in settings:
        raw.put(setting.key, setting.value, "advised")
        if setting.key == "training.folds":  # every row is held out once
            raw.values["data"].pop("test_size", None)
    return Recipe.build(raw)
