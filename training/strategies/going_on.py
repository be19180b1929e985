"""Going on from a parent: its own weights trained further, or new ones stacked on them while they stay as they are.

Either way the backbone's weights are never touched, so the result is an adapter for the same backbone as its parent.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters.blending.combination import Combination, Combiner
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.through_peft.vocabulary import TRAINED_ROWS
from lorary.hub.errors import TrainingError
from lorary.training.model import Base, as_plain_lora
from lorary.training.strategies.inherit import Inheritance
from lorary.training.tasks import Task


def take_over(model: Any, given: Inheritance) -> None:
    """Give a fresh ``PeftModel`` its parent's low-rank weights and rows of tokens, and the head where it goes on.

    Raises:
        TrainingError: a tensor has no place, or one of another shape.
    """
    state = _state(model)
    alive = {key.partition(".lora_")[0] for key in state}
    wanted = {
        key: tensor
        for key, tensor in given.state().items()
        # A module that the loss doesn't depend on carries no adapter; making it said so.
        if ".lora_" not in key or key.partition(".lora_")[0] in alive
    }
    for key in state:
        name = key.removesuffix(f".{TRAINED_ROWS}").rpartition(".")[2]
        if key.endswith(TRAINED_ROWS) and name in given.rows:
            # The parent's tokens come first; those that the run adds begin as a fresh adapter's do.
            rows = given.rows[name]
            wanted[key] = torch.cat([rows.to(state[key]), state[key][len(rows) :]])
    _put(model, wanted, given)


def take_over_whole(model: Any, given: Inheritance) -> None:
    """Give a fresh ``PeftModel`` what its parent trained whole: the head where it goes on. Raises as above."""
    _put(model, given.whole_state(), given)


def _put(model: Any, wanted: Mapping[str, torch.Tensor], given: Inheritance) -> None:
    from peft import set_peft_model_state_dict

    state = _state(model)
    for key, tensor in wanted.items():
        if key not in state:
            raise TrainingError(f"{given.parent.reference} has {key!r}, for which the new adapter has no place")
        if state[key].shape != tensor.shape:
            shapes = f"{list(tensor.shape)}, the new adapter's is {list(state[key].shape)}"
            raise TrainingError(f"{given.parent.reference}: {key!r} is {shapes}")
    set_peft_model_state_dict(model, {**state, **wanted})


def _state(model: Any) -> dict[str, torch.Tensor]:
    from peft import get_peft_model_state_dict

    return dict(get_peft_model_state_dict(model, save_embedding_layers=False))


@dataclass(frozen=True)
class Stack:
    """A parent that acts in the base's own modules, frozen, for the time that new weights are trained beside it."""

    given: Inheritance
    updates: Mapping[str, LowRank]
    handles: tuple[Any, ...]

    def remove(self) -> None:
        """Let the base be bare again."""
        for handle in self.handles:
            handle.remove()

    def joined(self, model: Any, base: Base, task: Task) -> Any:
        """One adapter whose ranks are the sums, in place of parent and new weights: the same function.

        B A of a site is ``[B_parent, B_new] [s_parent A_parent; s_new A_new]``, at the scale 1.
        """
        new = trained_updates(model)
        self.remove()
        combiner = Combiner(Combination("cat"), 1)
        names = sorted({*new, *self.updates})
        parts = {name: [which[name] for which in (self.updates, new) if name in which] for name in names}
        joined = {name: combiner.combine(part, [1.0] * len(part), name) for name, part in parts.items()}
        return as_plain_lora(model, base, task, joined)


def stack_on(base: Base, given: Inheritance) -> Stack:
    """Let a parent act in the base's own modules: each adds the parent's update to what it returns."""
    updates, handles = {}, []
    for path, site in given.sites.items():
        module = base.model.get_submodule(path)
        device = next(module.parameters()).device
        a, b = given.tensors[site.a].float(), given.tensors[site.b].float()
        bias = given.tensors[site.bias].float() if site.bias else None
        updates[path] = LowRank(a, b, bias, site.scale)
        on_device = LowRank(a.to(device), b.to(device), None if bias is None else bias.to(device), site.scale)
        handles.append(module.register_forward_hook(_adding(on_device)))
    return Stack(given, updates, tuple(handles))


def _adding(update: LowRank) -> Callable[[Any, Any, Any], Any]:
    b = update.b * update.scale
    bias = None if update.bias is None else update.bias * update.scale

    def add(module: Any, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        low = torch.nn.functional.linear(inputs[0].to(update.a.dtype), update.a)
        return output + torch.nn.functional.linear(low, b, bias).to(output.dtype)

    return add


def trained_updates(model: Any) -> dict[str, LowRank]:
    """The trained updates of a ``PeftModel`` by path, copied to the CPU."""
    found = {}
    for path, module in model.get_base_model().named_modules():
        if hasattr(module, "lora_A") and "default" in module.lora_A:
            a, b = module.lora_A["default"], module.lora_B["default"]
            bias = _copied(b.bias) if b.bias is not None else None
            found[path] = LowRank(_copied(a.weight), _copied(b.weight), bias, module.scaling["default"])
    return found


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("cpu", torch.float32, copy=True)
