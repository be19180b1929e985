"""What a backbone offers to adapters: its linear-like modules, by path, with their sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class LinearShape:
    """The sizes of a module that maps ``[..., inputs]`` to ``[..., outputs]``."""

    inputs: int
    outputs: int


@dataclass(frozen=True)
class ModuleMap:
    """A backbone's modules by path.

    ``body_prefix`` is the body's own path in the model, with a dot (empty where the model is the body itself).
    """

    linears: Mapping[str, LinearShape]
    others: frozenset[str]
    body_prefix: str


def map_modules(model: Any, body: Any) -> ModuleMap:
    """The map of ``model``, whose body (without the task head) is ``body``."""
    linears: dict[str, LinearShape] = {}
    others: set[str] = set()
    prefix = ""
    for path, module in model.named_modules():
        if module is body and path:
            prefix = f"{path}."
        shape = linear_shape(module)
        if shape is not None:
            linears[path] = shape
        elif path:
            others.add(path)
    return ModuleMap(linears, frozenset(others), prefix)


def linear_shape(module: torch.nn.Module) -> LinearShape | None:
    """The sizes of a linear-like module (``nn.Linear``, GPT-2's ``Conv1D``, quantized kinds), None for any other."""
    inputs, outputs = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(inputs, int) and isinstance(outputs, int):
        return LinearShape(inputs, outputs)
    if type(module).__name__ == "Conv1D" and isinstance(getattr(module, "nx", None), int):
        return LinearShape(int(module.nx), int(module.nf))  # type: ignore[arg-type]
    return None
