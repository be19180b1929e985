"""The adapter on its base: PEFT's config for a recipe, made from the recipe's seed."""

from __future__ import annotations

import warnings
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

_BY_PEFT = ("gaussian", "orthogonal", "eva")
"""Initialisations that are PEFT's own affair once it is told of them; they leave the base's weights alone."""


def add_adapter(
    base: Base, task: Task, recipe: Recipe, sample: Feature, note: Note, targets: Sequence[str] | None = None
) -> Any:
    """Wrap the base in a ``PeftModel``; ``sample`` is one encoded row, by which dead targets are found.

    ``targets`` are the paths that get an adapter; by default those that the recipe asks for.

    Every trained parameter is float32, whatever the base's dtype: bfloat16 swallows small updates.

    Raises:
        TrainingError: the targets match nothing.
    """
    from transformers import set_seed

    lora = recipe.lora
    if targets is None:
        targets = resolve_targets(base.model, lora.targets, base.saved, exclude=lora.exclude, layers=lora.layers)
    targets = _alive(base, task, targets, sample, note)
    set_seed(recipe.training.seed)
    with warnings.catch_warnings():
        # PEFT advises a way to make the model that spares memory; the adapter is the least of it.
        warnings.filterwarnings("ignore", message="lora with eva initialization")
        model = wrap(base.model, lora_config(base, task, recipe, targets))
    in_float32(model)
    return model


def in_float32(model: Any) -> None:
    """Turn whatever is trained to float32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


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


def wrap(model: Any, config: Any) -> Any:
    """The ``PeftModel`` of a config.

    PEFT's own class for question answering (0.21) drops ``token_type_ids``, so a BERT would be trained without telling
    question and context apart; its plain class hands everything on.
    """
    from peft import PeftModel, TaskType, get_peft_model

    if config.task_type == TaskType.QUESTION_ANS and not config.is_prompt_learning:
        return PeftModel(model, config)
    return get_peft_model(model, config)


def lora_config(base: Base, task: Task, recipe: Recipe, targets: Sequence[str]) -> Any:
    """PEFT's config for a recipe, with every target by its path."""
    from peft import EvaConfig, LoraConfig

    lora = recipe.lora
    return LoraConfig(
        task_type=task.peft_task_type,
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=recipe.method == "rslora",
        use_dora=recipe.method == "dora",
        target_modules=list(targets),
        rank_pattern=dict(lora.rank_pattern),
        alpha_pattern=dict(lora.alpha_pattern),
        init_lora_weights=lora.init if lora.init in _BY_PEFT else True,
        eva_config=EvaConfig() if lora.init == "eva" else None,
        modules_to_save=list(base.saved) or None,
    )


def _alive(base: Base, task: Task, targets: Sequence[str], sample: Feature, note: Note) -> list[str]:
    """The targets that the loss depends on; others, such as a pooler in token classification, would stay untrained.

    Raises:
        TrainingError: there are none.
    """
    reached = _reached(base.model, task, task.collator(base.tokenizer)([dict(sample)]), targets)
    alive = [target for target in targets if target in reached]
    if not alive:
        raise TrainingError(f"none of the targets takes part in {task.name}: {', '.join(targets[:5])}")
    dead = [target for target in targets if target not in reached]
    if dead:
        note(f"left out, since nothing of them reaches the loss: {', '.join(dead)}")
    return alive


def _reached(model: Any, task: Task, batch: Mapping[str, torch.Tensor], targets: Sequence[str]) -> set[str]:
    """The targets whose outputs the loss depends on: a zero is added to each, and one backward pass asks for it."""
    device = next(model.parameters()).device
    model.requires_grad_(False)  # frozen under an adapter anyway, and so no gradients of theirs are computed
    zeros = {name: torch.zeros((), device=device, requires_grad=True) for name in targets}

    def add(zero: torch.Tensor) -> Any:
        return lambda module, inputs, output: output + zero.to(output.device, output.dtype)

    hooks = [model.get_submodule(name).register_forward_hook(add(zero)) for name, zero in zeros.items()]
    training = model.training
    model.eval()  # no dropout, so that no random numbers are used up
    try:
        with precision(model):
            task.loss(model, {name: tensor.to(device) for name, tensor in batch.items()}).backward()
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return {name for name, zero in zeros.items() if zero.grad is not None}
