"""The adapter on its base: PEFT's config for a recipe, made from the recipe's seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lorary.hub.errors import TrainingError
from lorary.training.data import Note
from lorary.training.model.base import Base
from lorary.training.model.targets import resolve_targets
from lorary.training.precision import precision
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task
from lorary.training.tasks.base import Feature


def add_adapter(
    base: Base, task: Task, recipe: Recipe, sample: Feature, note: Note, targets: Sequence[str] | None = None
) -> Any:
    """Wrap the base in a ``PeftModel``; ``sample`` is one encoded row, by which dead targets are found.

    ``targets`` are the paths that get an adapter; by default those that the recipe asks for.

    Every trained parameter is float32, whatever the base's dtype: bfloat16 swallows small updates.

    Raises:
        TrainingError: the targets match nothing.
    """
    from peft import get_peft_model
    from transformers import set_seed

    if targets is None:
        targets = resolve_targets(base.model, recipe.lora.targets, base.saved)
    # Each adapter is made from the same seed, so that trying one out changes nothing.
    set_seed(recipe.training.seed)
    model = get_peft_model(base.model, lora_config(base, task, recipe, targets))
    dead = _without_gradient(model, task.collator(base.tokenizer)([dict(sample)]), targets)
    if dead:
        alive = [target for target in targets if target not in dead]
        if not alive:
            raise TrainingError(f"none of the targets takes part in {task.name}: {', '.join(targets[:5])}")
        note(f"left out, since nothing of them reaches the loss: {', '.join(dead)}")
        take_off(model)
        set_seed(recipe.training.seed)
        model = get_peft_model(base.model, lora_config(base, task, recipe, alive))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


def take_off(model: Any) -> Any:
    """The bare base out of a ``PeftModel``, as it was before: PEFT's ``unload`` would leave the trained heads in it."""
    from peft.utils import ModulesToSaveWrapper

    base = model.get_base_model()
    own = {
        path: module.original_module
        for path, module in base.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    plain = model.unload()
    for path, module in own.items():
        parent, _, last = path.rpartition(".")
        setattr(plain.get_submodule(parent), last, module)
    return plain


def lora_config(base: Base, task: Task, recipe: Recipe, targets: Sequence[str]) -> Any:
    """PEFT's config for a recipe, with every target by its path."""
    from peft import LoraConfig

    lora = recipe.lora
    return LoraConfig(
        task_type=task.peft_task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=recipe.method == "rslora",
        target_modules=list(targets),
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        modules_to_save=list(base.saved) or None,
    )


def _without_gradient(model: Any, batch: Mapping[str, torch.Tensor], targets: Sequence[str]) -> list[str]:
    """Targets that the loss doesn't depend on, such as a pooler in token classification; one backward pass tells."""
    device = next(model.parameters()).device
    training = model.training
    model.eval()  # no dropout, so that no random numbers are used up
    with precision(model):
        model(**{name: tensor.to(device) for name, tensor in batch.items()}).loss.backward()
    reached = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad(set_to_none=True)
    model.train(training)
    return [name for name in targets if not any(f".{name}.lora_" in f".{key}" for key in reached)]
