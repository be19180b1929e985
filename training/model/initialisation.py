"""What the adapter begins as, where that takes the training rows or the base's weights.

PiSSA, OLoRA and CorDA move a part of each weight into the adapter and train on what is left. Here the base's weights
stay as they are: what was moved is taken off each layer's output instead, which is the same sum, works on quantized
weights, and leaves nothing behind when the adapter is taken off. In the end both parts become one plain LoRA of twice
the rank, ``W x + s (B A - B0 A0) x``, as PEFT's own conversion does it (``LoraModel.subtract_mutated_init``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from lorary.adapters.base.loading import load_base
from lorary.adapters.base.modules import linear_shape
from lorary.adapters.base.quantization import dense_weight
from lorary.hub.errors import TrainingError
from lorary.training.data import Note
from lorary.training.model.adapter import in_float32
from lorary.training.model.base import Base
from lorary.training.model.corda import corda_factors
from lorary.training.model.eva import initialise_eva
from lorary.training.recipe import Recipe
from lorary.training.recipe.methods import LORA_METHODS, TAKEN_FROM_WEIGHTS
from lorary.training.tasks import Task
from lorary.training.tasks.rows.encoded import Feature

_ADAPTER = "default"
_Factors = tuple[torch.Tensor, torch.Tensor]


def initialise(model: Any, base: Base, task: Task, recipe: Recipe, rows: Sequence[Feature], note: Note) -> None:
    """Give a new adapter the values that ``lora.init`` asks for, where PEFT didn't do so when it was made.

    Args:
        model: a ``PeftModel`` from :func:`~lorary.training.model.adapter.add_adapter`.
        rows: the training rows' features, for those that look at data.

    Raises:
        TrainingError: the rows, or a weight, don't have what the initialisation needs.
    """
    init = recipe.lora.init
    if recipe.method not in LORA_METHODS:
        return
    if init == "eva":
        initialise_eva(model, base, task, recipe, rows)
    elif init == "loftq":
        _set_factors(model, _loftq_factors(base, task, recipe))
    elif init.startswith(TAKEN_FROM_WEIGHTS):
        own = _own_factors(init)
        if init.startswith("corda"):
            own = corda_factors(model, list(_lora_layers(model)), base, task, recipe, rows, _weight)
        _set_factors(model, own)
        for _, layer in _lora_layers(model):
            _take(layer)
        note(f"{init} is saved as plain LoRA of twice the rank, since the base stays as it is")
    in_float32(model)


def settle(model: Any) -> None:
    """After training: let what was taken off the base's outputs become a part of the adapter, in place."""
    layers = [layer for _, layer in _lora_layers(model) if hasattr(layer, "taken_a")]
    for layer in layers:
        a, b = layer.lora_A[_ADAPTER], layer.lora_B[_ADAPTER]
        a.weight.data = torch.cat([a.weight.data, layer.taken_a.to(a.weight)], dim=0)
        b.weight.data = torch.cat([b.weight.data, -layer.taken_b.to(b.weight)], dim=1)
        a.out_features = b.in_features = layer.r[_ADAPTER] = a.weight.shape[0]
        _give_back(layer)
    if layers:
        _double(model.peft_config[_ADAPTER])


def _double(config: Any) -> None:
    """Twice the ranks, at the same scales."""
    more = math.sqrt(2) if config.use_rslora else 2
    config.r *= 2
    config.lora_alpha *= more
    config.rank_pattern = {name: 2 * rank for name, rank in config.rank_pattern.items()}
    config.alpha_pattern = {name: more * alpha for name, alpha in config.alpha_pattern.items()}


def _lora_layers(model: Any) -> Iterator[tuple[str, Any]]:
    """PEFT's layers with factors of linear modules, by the modules' paths in the base."""
    for path, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A") and _ADAPTER in module.lora_A:
            yield path, module


def _set_factors(model: Any, factors: Callable[[str, Any], _Factors]) -> None:
    for path, layer in _lora_layers(model):
        shape, rank = linear_shape(layer.get_base_layer()), layer.r[_ADAPTER]
        assert shape is not None
        if rank > min(shape.inputs, shape.outputs):
            raise TrainingError(
                f"lora.rank {rank} is more than {path} has ({shape.outputs} x {shape.inputs}), and the initialisation "
                "decomposes its weight; choose a smaller rank"
            )
        a, b = factors(path, layer)
        layer.lora_A[_ADAPTER].weight.data = a.to(layer.lora_A[_ADAPTER].weight).contiguous()
        layer.lora_B[_ADAPTER].weight.data = b.to(layer.lora_B[_ADAPTER].weight).contiguous()


def _own_factors(init: str) -> Callable[[str, Any], _Factors]:
    """PEFT's own initialisation, run on a copy of each weight, since it changes the weight that it is given."""
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    def factors(path: str, layer: Any) -> _Factors:
        weight, rank = _weight(layer.get_base_layer()), layer.r[_ADAPTER]
        copy = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        copy.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        alpha = layer.scaling[_ADAPTER] * rank
        config = LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights=init)
        made = Linear(copy, _ADAPTER, config, r=rank, lora_alpha=alpha)
        return made.lora_A[_ADAPTER].weight.detach(), made.lora_B[_ADAPTER].weight.detach()

    return factors


def _loftq_factors(base: Base, task: Task, recipe: Recipe) -> Callable[[str, Any], _Factors]:
    """Of each weight, the largest part of what quantizing it lost (LoftQ with one iteration, Li et al. 2023).

    PEFT's ``replace_lora_weights_loftq`` does the same, but on CUDA alone, and leaves the adapter's scale out.
    """
    whole = load_base(
        recipe.base,
        auto_class=task.auto_class(),
        dtype="float32",
        device="cpu",
        revision=recipe.revision,
        **task.model_kwargs(),
    ).model

    def factors(path: str, layer: Any) -> _Factors:
        module, rank = layer.get_base_layer(), layer.r[_ADAPTER]
        lost = _weight(whole.get_submodule(path)).to(next(layer.parameters()).device) - _weight(module)
        u, s, v = torch.linalg.svd(lost, full_matrices=False)
        root = torch.sqrt(s[:rank] / layer.scaling[_ADAPTER])
        return root[:, None] * v[:rank], u[:, :rank] * root

    return factors


def _weight(module: Any) -> torch.Tensor:
    """A linear module's weight, [outputs, inputs] in float32."""
    shape = linear_shape(module)
    weight = dense_weight(module).float()
    return weight.T if shape is not None and shape.transposed else weight


def _take(layer: Any) -> None:
    """Take the adapter's present part off what the layer gives; buffers move with the model and aren't saved."""
    layer.register_buffer("taken_a", layer.lora_A[_ADAPTER].weight.detach().clone(), persistent=False)
    layer.register_buffer("taken_b", layer.lora_B[_ADAPTER].weight.detach().clone(), persistent=False)
    layer.register_forward_hook(_without_taken)


def _give_back(layer: Any) -> None:
    for key, hook in list(layer._forward_hooks.items()):
        if hook is _without_taken:
            del layer._forward_hooks[key]
    del layer.taken_a, layer.taken_b


def _without_taken(layer: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    if layer.disable_adapters:
        return output  # the bare base, as for any other adapter
    taken = torch.nn.functional.linear(inputs[0].to(layer.taken_a.dtype), layer.taken_a)
    taken = torch.nn.functional.linear(taken, layer.taken_b) * layer.scaling[_ADAPTER]
    return output - taken.to(output.dtype)
