"""The adapter on its base, made from the recipe's seed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from lorary.hub.errors import TrainingError
from lorary.training.data import Note
from lorary.training.model.base import Base
from lorary.training.model.methods import adapter_config, chosen_parameters, chosen_targets, make_peft_model
from lorary.training.model.new_tokens import begin_rows, without_tokens
from lorary.training.precision import evaluating, precision
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task
from lorary.training.tasks.rows.encoded import Feature


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

    parameters: Sequence[str] = ()
    if targets is None:
        targets = chosen_targets(base.model, recipe, base.saved, note)
        parameters = chosen_parameters(base.model, recipe, base.saved)
    if targets is not None:
        targets, parameters = _alive(base, task, targets, parameters, sample, note)
    set_seed(recipe.training.seed)
    model = make_peft_model(base.model, adapter_config(base, task, recipe, targets, parameters), recipe.method)
    begin_rows(model, base)
    in_float32(model)
    return model


def in_float32(model: Any) -> None:
    """Turn whatever is trained to float32."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def take_off(model: Any, base: Base) -> Any:
    """The base's model out of a ``PeftModel``, as it was before: PEFT's ``unload`` would leave the trained heads in it.

    New tokens that ``base`` got are gone from it too.
    """
    from peft.utils import ModulesToSaveWrapper

    wrapped = model.get_base_model()
    own = {
        path: module.original_module
        for path, module in wrapped.named_modules()
        if isinstance(module, ModulesToSaveWrapper)
    }
    # Virtual tokens stand beside the base, not in it.
    plain = wrapped if model.active_peft_config.is_prompt_learning else _unloaded(model)
    for path, module in own.items():
        parent, _, last = path.rpartition(".")
        setattr(plain.get_submodule(parent), last, module)
    without_tokens(plain, base)
    return plain


def _unloaded(model: Any) -> Any:
    from peft.tuners.tuners_utils import BaseTunerLayer

    try:
        return model.unload()
    except (ValueError, AttributeError):
        # IA3 takes it for a merge, and refuses it on 4- and 8-bit bases; and it looks for a weight in a head of layers.
        base = model.get_base_model()
        for path, module in list(base.named_modules()):
            if isinstance(module, BaseTunerLayer):
                parent, _, last = path.rpartition(".")
                setattr(base.get_submodule(parent), last, module.get_base_layer())
        vars(base).pop("peft_config", None)  # PEFT would warn of it when the next adapter goes on
        return base


def _alive(
    base: Base, task: Task, targets: Sequence[str], parameters: Sequence[str], sample: Feature, note: Note
) -> tuple[list[str], list[str]]:
    """The targets and parameters that the loss depends on; others, such as a tagger's pooler, would stay untrained.

    Raises:
        TrainingError: there are none.
    """
    owners = {parameter: parameter.rpartition(".")[0] for parameter in parameters}
    modules = [*targets, *dict.fromkeys(owners.values())]
    reached = _reached(base.model, task, task.collator(base.tokenizer)([dict(sample)]), modules, set(owners.values()))
    asked = [*targets, *parameters]
    dead = [path for path in asked if owners.get(path, path) not in reached]
    if len(dead) == len(asked):
        raise TrainingError(f"none of the targets takes part in {task.name}: {', '.join(dead[:5])}")
    if dead:
        note(f"left out, since nothing of them reaches the loss: {', '.join(dead)}")
    alive = set(asked) - set(dead)
    return [path for path in targets if path in alive], [path for path in parameters if path in alive]


def _reached(
    model: Any, task: Task, batch: Mapping[str, torch.Tensor], modules: Sequence[str], several: Collection[str]
) -> set[str]:
    """The modules whose outputs the loss depends on: a zero is added to each, and one backward pass asks for it.

    ``several``: those that may give more than one tensor, as routers do.
    """
    device = next(model.parameters()).device
    model.requires_grad_(False)  # frozen under an adapter anyway, and so no gradients of theirs are computed
    zeros = {name: torch.zeros((), device=device, requires_grad=True) for name in modules}

    def plus(zero: torch.Tensor, output: Any, name: str) -> Any:
        if isinstance(output, torch.Tensor):
            return output + zero.to(output.device, output.dtype) if output.is_floating_point() else output
        # I-BERT's layers give their output's scale along, and take no adapter.
        return tuple(plus(zero, one, name) for one in output) if name in several else output

    def add(name: str) -> Any:
        return lambda module, inputs, output: plus(zeros[name], output, name)

    hooks = [model.get_submodule(name).register_forward_hook(add(name)) for name in modules]
    try:
        with evaluating(model), precision(model):  # without dropout no random numbers are used up
            loss = task.loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
            if loss.requires_grad:  # it doesn't where it depends on none of them
                loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return {name for name, zero in zeros.items() if zero.grad is not None}
