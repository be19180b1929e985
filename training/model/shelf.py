"""A base that stays in memory from one run of a call to the next."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from lorary.training.model.base import Base, head_modules
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task


class Shelf:
    """Keeps the last run's base. The next run gets it when it asks for the same one, with a head for its own labels.

    One base at a time, since two may not fit; one that another recipe needs is let go before that is loaded.
    """

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._base: Base | None = None

    def put(self, recipe: Recipe, task: Task, base: Base) -> None:
        """Keep a base that is bare again."""
        self._key, self._base = _key(recipe, task), base

    def take(self, recipe: Recipe, task: Task) -> Base | None:
        """The base for a recipe, if it is the one that is kept; it is gone from here until it is put back.

        Its new parameters are whatever they were, for :func:`lorary.training.model.base.reseed` to draw again.
        """
        base, fits = self._base, self._key == _key(recipe, task)
        self._key = self._base = None
        return _for_labels(base, task) if base is not None and fits else None


def _key(recipe: Recipe, task: Task) -> tuple[Any, ...]:
    """What has to be equal: all that decides how a base is read and set up, and its class, which decides its parts."""
    reading = (recipe.base, recipe.revision, recipe.base_quantization, recipe.dtype, recipe.device, recipe.device_map)
    return (*reading, recipe.training.classifier_dropout, task.auto_class().__name__, type(task).__name__)


def _for_labels(base: Base, task: Task) -> Base | None:
    """The base with the head that transformers' class has for these labels; None where only loading it tells.

    What the base's files hold of the head stays as it was read: :func:`~lorary.training.model.base.reseed` draws the
    rest.
    """
    model = base.model
    config = copy.deepcopy(model.config)
    for name, value in task.model_kwargs().items():
        setattr(config, name, value)
    if not task.new_head:
        return base
    with torch.device("meta"):
        fresh = task.auto_class().from_config(config)
    heads = head_modules(fresh)
    if type(fresh) is not type(model) or heads != head_modules(model):
        return None
    read = {
        name: parameter
        for name, parameter in model.named_parameters()
        if name.partition(".")[0] in heads and name not in base.new
    }
    in_files = {**read, **{name: model.get_parameter(name) for name in base.other_shapes}}
    if any(fresh.get_parameter(name).shape != parameter.shape for name, parameter in in_files.items()):
        return None
    for name in heads:
        like = next(model.get_submodule(name).parameters())
        setattr(model, name, fresh.get_submodule(name).to_empty(device=like.device).to(like.dtype).eval())
    for name, parameter in read.items():
        path, _, last = name.rpartition(".")
        setattr(model.get_submodule(path), last, parameter)
    _take_over(model, fresh)
    model.config = config
    return base


def _take_over(model: nn.Module, fresh: nn.Module) -> None:
    """What the class has noted of the labels outside its config, such as ``num_labels``."""
    for name, value in vars(fresh).items():
        if isinstance(value, (int, str)) and not name.startswith("_") and name != "training":
            setattr(model, name, value)
