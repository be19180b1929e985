"""The layer: what the wrapped module returns, plus each row's own low-rank update (Hu et al. 2021).

The wrapped module is called as it is, so its quantization, its devices and its hooks stay its own affair.
"""

from __future__ import annotations

from typing import Any

import torch

from lorary.adapters.routing import active


class LoraLayer(torch.nn.Module):
    """Stands in a backbone where a linear-like module stood; ``path`` is that module's path in the backbone."""

    def __init__(self, base_layer: torch.nn.Module, path: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.path = path

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """``x`` [rows, ..., inputs] to [rows, ..., outputs]."""
        routing = active()
        if routing is None:
            return self.base_layer(x, *args, **kwargs)
        return routing.apply(self.path, self.base_layer, x, args, kwargs)

    def __getattr__(self, name: str) -> Any:
        # Models look into their linears (T5 asks for `wo.weight.dtype`); they find the wrapped module's attributes.
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)


def wrap(model: torch.nn.Module, path: str) -> None:
    """Put a :class:`LoraLayer` around the module at ``path``, unless there is one already."""
    parent_path, _, name = path.rpartition(".")
    parent = model.get_submodule(parent_path)
    module = getattr(parent, name)
    if not isinstance(module, LoraLayer):
        layer = LoraLayer(module, path)
        layer.train(module.training)
        setattr(parent, name, layer)
