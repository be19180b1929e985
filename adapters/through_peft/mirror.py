"""A model's tree of modules once more, over the same memory: what changes one tree leaves the other as it is.

PEFT puts its layers into a model in place. Given a mirror it changes that, while the backbone's own tree, which other
threads are running, stays whole; no weight is copied.
"""

from __future__ import annotations

import copy
from typing import Any

import torch

from lorary.adapters.base.identity import body_of
from lorary.adapters.base.modules import serialise_changing_rope
from lorary.adapters.layer.lora import LoraLayer
from lorary.adapters.through_peft.own_pass import demand_own_model

_QUANTIZATION_STATES = ("MatmulLtState", "QuantState")


def mirror(model: Any) -> Any:
    """A copy of ``model``'s modules and configs whose tensors lie in the memory of the original's.

    Parameters are objects of their own, so that freezing or replacing one doesn't reach the original; quantized ones,
    which carry more than numbers, are the original's, as are linears that torch has cut up among processes and can't
    copy: PEFT's layers go around these. The loader's own layers and hooks are left out, and so is a
    forward that it put in the body's place (compiled, or under a lock for its rotary embedding; that is put in anew).
    """
    memo: dict[int, Any] = {}
    forwards = {}
    for path, module in model.named_modules():
        _share(module, memo)
        if _in_shards(module):
            memo[id(module)] = module
        forward = vars(module).get("forward")
        if (own := without_wrappers(forward)) is not forward:
            forwards[path] = own
            memo[id(forward)] = None
    copied = copy.deepcopy(model, memo)
    for path, own in forwards.items():
        copied.get_submodule(path).forward = copy.deepcopy(own, memo)  # a bound method is bound to the copy
    for module in list(copied.modules()):
        _take_off(module)
    serialise_changing_rope(body_of(copied))
    return copied


def memory_of(model: torch.nn.Module) -> set[int]:
    """Where a model's parameters and buffers lie: what a mirror shares with it."""
    return {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()}


def _share(module: torch.nn.Module, memo: dict[int, Any]) -> None:
    """Note by identity, as :func:`copy.deepcopy` reads it, what the copy has in common with the original."""
    for held in vars(module).values():
        # An 8-bit layer keeps its weights in its state besides, a 4-bit one its scales.
        if isinstance(held, torch.Tensor) or type(held).__name__ in _QUANTIZATION_STATES:
            memo[id(held)] = held
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is None or id(tensor) in memo:
            continue
        plain = type(tensor) is torch.nn.Parameter
        memo[id(tensor)] = torch.nn.Parameter(tensor.detach(), requires_grad=False) if plain else tensor


def _in_shards(module: torch.nn.Module) -> bool:
    return any(kind.__name__ == "FSDPModule" for kind in type(module).__mro__)


def without_wrappers(forward: Any) -> Any:
    """A module's forward without what the loader put around it."""
    while hasattr(forward, "eager"):
        forward = forward.eager
    return forward


def _take_off(module: torch.nn.Module) -> None:
    """Take the loader's layers and its guard out of a module of the copy."""
    for name, child in module.named_children():
        if isinstance(child, LoraLayer):
            setattr(module, name, child.base_layer)
    for key, hook in list(module._forward_pre_hooks.items()):
        if hook is demand_own_model:
            del module._forward_pre_hooks[key]
