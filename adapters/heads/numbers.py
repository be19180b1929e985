"""Heads that answer with numbers: in training and serving, their last layer computes in float32 whatever the body does.

The last layer of a regression head has the mean of what it learned in its bias. In half precision answers would be
rounded with that mean in them: between 256 and 512 bfloat16 has every second number. The states that the layer is given
are rounded too, but that costs a share of the answers' spread, however far from zero they lie.
"""

from __future__ import annotations

from typing import Any

import torch

from lorary.adapters.base.bodies import parts_of_body
from lorary.hub.manifest import REGRESSION


class Float32Linear(torch.nn.Linear):
    """A linear layer that computes in float32, whatever it is given, where its weight is; also within autocast."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """``input`` [..., inputs] of any dtype to float32 [..., outputs]."""
        weight, bias = self.weight, self.bias
        given = input.to(weight.device, torch.float32)
        with torch.autocast(weight.device.type, enabled=False):
            return torch.nn.functional.linear(given, weight.float(), None if bias is None else bias.float())


def answers_with_numbers(config: Any) -> bool:
    """Is a task model of this config asked for numbers? One output of which nothing is said is one to transformers."""
    said = getattr(config, "problem_type", None)
    return said == REGRESSION or (said is None and config.num_labels == 1)


def number_layer(model: Any) -> str | None:
    """The path of the layer that gives a task model's numbers, the last beside its body; None where it gives none."""
    if not answers_with_numbers(model.config):
        return None
    body = parts_of_body(model)
    paths = [
        f"{name}.{path}".rstrip(".")
        for name, child in model.named_children()
        if name not in body
        for path, module in child.named_modules()
        if isinstance(module, torch.nn.Linear) and module.out_features == model.config.num_labels
    ]
    return paths[-1] if paths else None


def answer_in_float32(model: Any) -> str | None:
    """Put a :class:`Float32Linear` with the same parameters in the place of :func:`number_layer`; returns its path."""
    path = number_layer(model)
    if path is None:
        return None
    layer: Any = model.get_submodule(path)
    made = Float32Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, made.train(layer.training))
    return path
