"""Merging an adapter that runs through PEFT: PEFT folds it into a copy of its model whose weights are plain numbers."""

from __future__ import annotations

from typing import Any

import torch

from lorary.adapters.base.modules import ModuleMap
from lorary.adapters.heads.numbers import number_layer
from lorary.adapters.matching.keys import PEFT_PREFIX
from lorary.adapters.merging.check import Answers
from lorary.adapters.merging.merge import Target, merged_model, write_checked
from lorary.adapters.merging.weights import Changes
from lorary.adapters.through_peft.adapter import PeftAdapter
from lorary.adapters.through_peft.model import build_peft_model
from lorary.adapters.values import MergedModel
from lorary.hub.errors import MergeError, UnsupportedAdapterError, first_line

_PARTS = ("base_layer", "original_module", "token_adapter")  # what PEFT puts between a module's name and its weights


def write_merged_by_peft(adapter: PeftAdapter, modules: ModuleMap, into: Target) -> MergedModel:
    """Write the model that an adapter makes of its backbone, with its own vocabulary where it has one.

    Raises as :meth:`lorary.adapters.Backbone.merge` does.
    """
    if adapter.view.virtual_tokens or not hasattr(adapter.view.peft_model.base_model, "merge_and_unload"):
        method = adapter.checkpoint.peft_type
        raise MergeError(
            f"{adapter.source}: {method} changes no weights, so there is nothing to merge; serve it instead"
        )
    answers = Answers(adapter.logits, adapter.bare_logits)
    return write_checked(adapter, adapter.inference, answers, into, lambda dtype: _merge(adapter, modules, dtype))


def _merge(adapter: PeftAdapter, modules: ModuleMap, dtype: torch.dtype) -> Any:
    dense = merged_model(adapter.bare, Changes({}, {}, modules), torch.float32)
    dense.tie_weights()
    said = dense.config.tie_word_embeddings
    try:
        peft_model = build_peft_model(adapter.checkpoint, adapter.state(), dense, dense)
        ties = _untie(peft_model)
        dense.config.tie_word_embeddings = False  # PEFT would warn of what was untied; that is settled below
        merged = _unwrapped(peft_model.merge_and_unload())
    except (UnsupportedAdapterError, NotImplementedError, ValueError, TypeError, RuntimeError) as error:
        raise MergeError(f"{adapter.source}: PEFT can't merge it: {first_line(error)}") from error
    merged.config.tie_word_embeddings = said and _tie_again(merged, ties)
    return _cast(merged, dtype)


def _cast(model: Any, dtype: torch.dtype) -> Any:
    """A float32 model in ``dtype``, but for the layer that numbers come from."""
    path = number_layer(model)
    exact = {} if path is None else {name: p.detach() for name, p in model.get_submodule(path).named_parameters()}
    model.to(dtype)
    for name, values in exact.items():
        model.get_submodule(path).get_parameter(name).data = values
    return model


def _unwrapped(model: Any) -> Any:
    """With the modules that were trained whole in their places; of some methods PEFT leaves them wrapped."""
    from peft.utils import ModulesToSaveWrapper

    for path, module in list(model.named_modules()):
        if isinstance(module, ModulesToSaveWrapper):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, module.modules_to_save[module.active_adapter])
    return model


_Place = tuple[str, str]  # a module and a name in it


def _untie(model: torch.nn.Module) -> list[list[_Place]]:
    """Give what PEFT merges into weights of its own: it merges in place, into the backbone's memory and both of a tie.

    Returns the places that were tied, by their paths without PEFT's own parts.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    changing = {part for layer in model.modules() if isinstance(layer, BaseTunerLayer) for part in layer.modules()}
    ties: dict[int, list[_Place]] = {}
    for path, module in model.named_modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is None:
                continue
            ties.setdefault(id(parameter), []).append((_plain_path(path), name))
            if module in changing:
                module._parameters[name] = torch.nn.Parameter(parameter.detach().clone(), requires_grad=False)
    return [places for places in ties.values() if len(places) > 1]


def _plain_path(path: str) -> str:
    parts = path.removeprefix(PEFT_PREFIX).split(".")
    return ".".join(part for part in parts if part not in _PARTS)


def _tie_again(merged: Any, ties: list[list[_Place]]) -> bool:
    """Make what was tied one tensor again, if all of it is still the same, else give each place one of its own.

    Of some only there is no telling: transformers ties all that its class names, or by ``tie_word_embeddings`` nothing,
    and then finds no values for a tensor that was saved once for two places.
    """
    groups = [[(merged.get_submodule(path), name) for path, name in places] for places in ties]
    whole = all(torch.equal(getattr(*group[0]), getattr(*place)) for group in groups for place in group[1:])
    for first, *others in groups:
        for module, name in others:
            kept = getattr(*first) if whole else getattr(module, name).detach().clone()
            module._parameters[name] = kept if whole else torch.nn.Parameter(kept, requires_grad=False)
    return whole
