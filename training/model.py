"""From a base to a model that can be trained: head, quantization, targets, the adapter, all seeded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.identity import body_of
from lorary.adapters.loading import is_encoder, load_base
from lorary.adapters.modules import linear_shape, map_modules
from lorary.hub.embedded import resolve_base
from lorary.hub.errors import BaseNotFoundError, TrainingError
from lorary.hub.manifest import BaseIdentity
from lorary.training.data import Note
from lorary.training.recipe import Recipe
from lorary.training.recipe_yaml import nearest
from lorary.training.tasks import Task
from lorary.training.tasks.base import Feature


@dataclass(frozen=True)
class Base:
    """A base with the task's head, before the adapter. ``saved`` are the modules that are trained whole."""

    model: Any
    tokenizer: Any
    identity: BaseIdentity
    saved: tuple[str, ...]


def load_for(task: Task, recipe: Recipe) -> Base:
    """Load a recipe's base with the task's head; the seed is set before the head is made.

    Raises:
        BaseNotFoundError: no such base, or it has no tokenizer.
        TrainingError: the base's own files lack parts that can't be trained in, or it is of the wrong kind.
    """
    from transformers import set_seed

    auto_class = task.auto_class()
    head = _head_names(recipe, auto_class) if task.new_head and recipe.quantization != "none" else ()
    set_seed(recipe.training.seed)
    loaded = load_base(
        recipe.base,
        auto_class=auto_class,
        quantization=recipe.quantization,
        dtype=recipe.dtype,
        device=recipe.device,
        device_map=recipe.device_map,
        revision=recipe.revision,
        skip_modules=head,
        **task.model_kwargs(),
    )
    if loaded.tokenizer is None:
        raise BaseNotFoundError(f"base {recipe.base!r} has no tokenizer; expected its files beside the weights")
    if not task.new_head and is_encoder(loaded.model.config):
        raise TrainingError(f"base {recipe.base!r} is an encoder, which can't generate; choose a causal language model")
    saved = (*(head_modules(loaded.model) if task.new_head else ()), *_new_in_body(loaded.model, loaded.new_parameters))
    return Base(loaded.model, loaded.tokenizer, loaded.identity, saved)


def head_modules(model: Any) -> tuple[str, ...]:
    """The children with parameters that stand beside the body: classifier, score, DistilBERT's pre_classifier."""
    body = body_of(model)
    return tuple(
        name for name, child in model.named_children() if child is not body and any(True for _ in child.parameters())
    )


def _head_names(recipe: Recipe, auto_class: Any) -> tuple[str, ...]:
    """The head's names before anything is loaded, from an empty model: they have to be kept from quantization."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(resolve_base(recipe.base, revision=recipe.revision).path)
        with torch.device("meta"):
            return head_modules(auto_class.from_config(config))
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise BaseNotFoundError(f"base {recipe.base!r} can't be loaded as a model: {first}") from error


def _new_in_body(model: Any, new_parameters: Sequence[str]) -> tuple[str, ...]:
    """Modules of the body that the base's files don't hold (a pooler, mostly): random, so they are trained and saved.

    Raises:
        TrainingError: one of them isn't made of linear layers, or has no name of its own.
    """
    body = body_of(model)
    prefix = map_modules(model, body).body_prefix
    new = [name for name in new_parameters if name.startswith(prefix)] if prefix else []
    names = set()
    for parameter in new:
        path = _topmost_new(model, parameter, set(new_parameters), prefix)
        module, last = model.get_submodule(path), path.rpartition(".")[2]
        plain = all(
            linear_shape(part) for part in module.modules() if any(True for _ in part.parameters(recurse=False))
        )
        others = [name for name, _ in body.named_modules() if name.rpartition(".")[2] == last]
        if not plain or len(others) > 1:
            raise TrainingError(
                f"the base's files hold no {parameter!r}, so it would stay random, and it can't be trained with the "
                "adapter; choose a base that has it"
            )
        names.add(last)
    return tuple(sorted(names))


def _topmost_new(model: Any, parameter: str, new: set[str], prefix: str) -> str:
    """The path of the largest module around ``parameter`` of which every parameter is new."""
    path = parameter.rpartition(".")[0]
    while (above := path.rpartition(".")[0]) and above.startswith(prefix):
        if any(f"{above}.{name}" not in new for name, _ in model.get_submodule(above).named_parameters()):
            break
        path = above
    return path


def add_adapter(base: Base, task: Task, recipe: Recipe, sample: Feature, note: Note) -> Any:
    """Wrap the base in a ``PeftModel``; ``sample`` is one encoded row, by which dead targets are found.

    Every trained parameter is float32, whatever the base's dtype: bfloat16 swallows small updates.

    Raises:
        TrainingError: the targets match nothing.
    """
    from peft import get_peft_model
    from transformers import set_seed

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
        model.unload()
        set_seed(recipe.training.seed)
        model = get_peft_model(base.model, lora_config(base, task, recipe, alive))
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return model


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


def resolve_targets(model: Any, targets: str | Sequence[str], saved: Sequence[str]) -> list[str]:
    """The paths of the linear modules that get an adapter: all of the body's, its attention's, or those asked for.

    PEFT's own ``all-linear`` also takes the head of some task classes, and then fails.

    Raises:
        TrainingError: a name or a pattern matches nothing.
    """
    modules = map_modules(model, body_of(model))
    linear = [
        path
        for path in modules.linears
        if path.startswith(modules.body_prefix) and not set(path.split(".")) & set(saved)
    ]
    if targets == "all-linear":
        chosen = linear
    elif targets == "attention":
        chosen = [name for name in linear if re.search(r"att(ention|n)[^.]*\.", name, re.IGNORECASE)]
    elif isinstance(targets, str):
        chosen = [name for name in linear if re.fullmatch(targets, name)]
    else:
        _demand_each(targets, linear)
        chosen = [name for name in linear if any(name == one or name.endswith(f".{one}") for one in targets)]
    if not chosen:
        raise TrainingError(f"lora.targets {targets!r} matches no linear layer; there are {_suffixes(linear)}")
    return chosen


def _demand_each(targets: Sequence[str], linear: Sequence[str]) -> None:
    for one in targets:
        if not any(name == one or name.endswith(f".{one}") for name in linear):
            known = {name.rpartition(".")[2] for name in linear}
            raise TrainingError(
                f"lora.targets: no linear layer is called {one!r}{nearest(one, known)}; there are {_suffixes(linear)}"
            )


def _suffixes(names: Sequence[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "none"


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


def precision(model: Any) -> Any:
    """Autocast where the base isn't float32: float32 adapters and heads then work with its activations."""
    dtype = base_dtype(model)
    device = next(model.parameters()).device.type
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def base_dtype(model: Any) -> torch.dtype:
    """The dtype of the frozen part: what isn't quantized, such as embeddings and norms."""
    frozen = (p.dtype for p in model.parameters() if not p.requires_grad and p.dtype.is_floating_point)
    return next(frozen, torch.float32)
