"""The recipe: every setting of a training run, checked as a whole before anything heavy is imported or loaded."""

from lorary.training.recipe.schema import FLAG_OF, Recipe

__all__ = ["FLAG_OF", "Recipe"]
