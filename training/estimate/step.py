"""What one training step costs: its memory and its arithmetic, from the config alone, without weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lorary.adapters.base.quantization import HEAD_MODULES, READ_BY_MODELS
from lorary.hub.errors import EstimateError, first_line
from lorary.hub.manifest import BaseIdentity
from lorary.training.estimate.batches import largest_batch
from lorary.training.estimate.live import LiveBytes
from lorary.training.estimate.products import Products
from lorary.training.estimate.quantized import stand_in
from lorary.training.estimate.without_values import WithoutValues
from lorary.training.interrupt import postponed
from lorary.training.model import Base, Before, adapter_config, chosen_parameters, chosen_targets, head_modules, wrap
from lorary.training.precision import precision
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task
from lorary.training.tasks.rows.encoded import Feature

_AVERAGES_OF_ADALORA = 3
"""What its allocator keeps of each low-rank weight: its importance in the last step, and two averages."""


@dataclass(frozen=True)
class StepCost:
    """Bytes and operations of a step on its largest batch.

    ``weights`` are the base's; ``adapter`` is what is trained, with its gradients, the optimizer's two moments and what
    AdaLoRA's allocator keeps of it; ``peak`` is the most that is alive at once, both of these included. ``flops``
    counts products forwards and backwards, per batch, and ``tokens`` what the batch holds, padding included.
    """

    weights: int
    adapter: int
    peak: int
    flops: int
    tokens: int

    @property
    def activations(self) -> int:
        """What a step needs beside weights, adapter and optimizer."""
        return self.peak - self.weights - self.adapter


def step_cost(
    recipe: Recipe, task: Task, tokenizer: Any, config: Any, features: Sequence[Feature], *, dtype: torch.dtype,
    device: torch.device, before: Before | None = None,
) -> StepCost:  # fmt: skip
    """Run a step on tensors without content and count.

    Args:
        recipe: its method, targets, quantization and batch size decide.
        task: gives the model class and the collator.
        tokenizer: the base's.
        config: the base's transformers config.
        features: encoded rows, as batches are made of them; the longest ones make the batch.
        dtype: of the base where it isn't quantized.
        device: where it will run; a CUDA device counts with its own kernels.
        before: what the base was before it got new tokens, which ``tokenizer`` and ``config`` have.

    Raises:
        EstimateError: the model's own code needs real values, or the method changes layers in a way that can't be
            counted.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    widths = [task.widths(feature) for feature in features]
    longest = [features[place] for place in largest_batch(widths, recipe.training.batch_size)]
    batch = task.collator(tokenizer)([dict(feature) for feature in task.sequences(longest)])
    try:
        with postponed(), torch.device("meta"), WithoutValues():
            model = _adapted(recipe, task, tokenizer, config, dtype, before)
        with postponed(), FakeTensorMode(allow_non_fake_inputs=True):
            _materialise(model, device)
            fake = {name: torch.empty(value.shape, dtype=value.dtype, device=device) for name, value in batch.items()}
            return _count(model, task, fake, recipe)
    except EstimateError:
        raise
    except Exception as error:  # a model's code may do anything with values that aren't there
        lacking = "" if isinstance(error, ValueError) else " without its weights"  # PEFT's own word on settings
        raise EstimateError(
            f"{task.name} on {recipe.base!r} can't be estimated{lacking}: {first_line(error)[:200]}"
        ) from error


def _adapted(recipe: Recipe, task: Task, tokenizer: Any, config: Any, dtype: torch.dtype, before: Before | None) -> Any:
    """The model with its adapter, on the meta device."""
    config = copy.deepcopy(config)
    for name, value in task.model_kwargs().items():
        setattr(config, name, value)
    model = task.auto_class().from_config(config, dtype=dtype)
    heads = head_modules(model) if task.new_head else ()
    if recipe.quantization != "none":
        double = recipe.double_quantization is not False
        stand_in(model, dtype, recipe.quantization, double, (*HEAD_MODULES, *READ_BY_MODELS, *heads))
    model.requires_grad_(False)
    base = Base(model, tokenizer, BaseIdentity(recipe.base), heads, before=before)
    targets, parameters = chosen_targets(model, recipe, heads), chosen_parameters(model, recipe, heads)
    # An initialisation reads weights, which aren't there, and leaves the layers what they are.
    # AdaMSS's ranks that depend on values are at most those that it has without.
    settings = {name: value for name, value in recipe.peft.items() if name != "use_dynamic_rank"}
    lora = recipe.lora.model_copy(update={"init": "default"})
    plain = recipe.model_copy(update={"lora": lora, "peft": settings})
    return wrap(model, adapter_config(base, task, plain, targets, parameters), on_meta=True)


def _materialise(model: nn.Module, device: torch.device) -> None:
    """Put tensors of the device in place of the meta ones; what is tied stays tied, what is trained is float32."""
    made: dict[int, torch.Tensor] = {}

    def fresh(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        if id(tensor) not in made:
            made[id(tensor)] = torch.empty(tensor.shape, dtype=dtype, device=device)
        return made[id(tensor)]

    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                dtype = torch.float32 if parameter.requires_grad else parameter.dtype
                known = fresh(parameter, dtype)
                module._parameters[name] = nn.Parameter(known, requires_grad=parameter.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = fresh(buffer, buffer.dtype)


def _low_rank(model: Any) -> int:
    """Bytes of the low-rank weights that are trained, without heads."""
    low_rank = [p for name, p in model.named_parameters() if p.requires_grad and ".lora_" in name]
    return _bytes(low_rank)


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _count(model: Any, task: Task, batch: Mapping[str, torch.Tensor], recipe: Recipe) -> StepCost:
    from peft.tuners.lycoris_utils import LycorisLayer

    model.train()
    for module in model.modules():
        if isinstance(module, LycorisLayer):
            module.training = False  # or LoHa and LoKr throw a die in each step: whether to leave the layer out
    if recipe.training.gradient_checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:  # as after a first step, so that the one that is counted is like all that follow it
        averages = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        optimizer.state[parameter] = {"step": torch.tensor(1.0), **averages}
    moments = {parameter: [*filter(torch.is_tensor, state.values())] for parameter, state in optimizer.state.items()}
    every = [moment for kept in moments.values() for moment in kept]
    products, live = Products(), LiveBytes([*model.parameters(), *model.buffers(), *every])
    weights = live.now - _bytes(every)
    with live, products:
        with precision(model), WithoutValues():
            loss = task.loss(model, batch)
        loss.backward()
        unreached = [moment for parameter in trained if parameter.grad is None for moment in moments[parameter]]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    own = _bytes(trained)
    importance = _AVERAGES_OF_ADALORA * _low_rank(model) if recipe.method == "adalora" else 0
    return StepCost(
        weights=weights - own,
        adapter=4 * own + importance,  # itself, its gradient, and AdamW's two moments
        peak=live.peak - _bytes(unreached) + importance,
        flops=products.flops,
        tokens=int(batch["input_ids"].numel()),
    )
