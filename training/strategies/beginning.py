"""How a run begins: with a fresh adapter, or from another one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lorary.training.data import Note
from lorary.training.model import Base, add_adapter
from lorary.training.recipe import Recipe
from lorary.training.strategies.going_on import Stack, stack_on, take_over, take_over_whole
from lorary.training.strategies.inherit import inherit, inherited_recipe
from lorary.training.strategies.parent import Parent
from lorary.training.tasks import Task
from lorary.training.tasks.rows.encoded import Feature


@dataclass(frozen=True)
class Begun:
    """A model that can be trained, the recipe with what it inherits, and the parent that is stacked upon."""

    recipe: Recipe
    model: Any
    stack: Stack | None = None


def begin(recipe: Recipe, base: Base, task: Task, parent: Parent | None, sample: Feature, note: Note) -> Begun:
    """Put the run's adapter on its base. Raises as :func:`add_adapter` and :func:`inherit`."""
    if parent is None:
        return Begun(recipe, add_adapter(base, task, recipe, sample, note))
    given = inherit(parent, base, task, note)
    if recipe.start == "stack":
        stack = stack_on(base, given)
        model = add_adapter(base, task, recipe, sample, note)
        take_over_whole(model, given)
        return Begun(recipe, model, stack)
    recipe = inherited_recipe(recipe, base, given)
    model = add_adapter(base, task, recipe, sample, note, targets=list(given.sites))
    take_over(model, given)
    return Begun(recipe, model)
