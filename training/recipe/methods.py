"""What each method says about recipes: PEFT's name for it, where it acts, and what it is trained for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LORA_METHODS = ("lora", "qlora", "rslora", "dora")
"""LoRA and its kin, whose settings stand under ``lora``; those of every other method stand under ``peft``."""

INITIALISATIONS: Mapping[str, str] = {
    "default": "A Kaiming-uniform, B zero (Hu et al. 2021)",
    "gaussian": "A normal, B zero",
    "orthogonal": "A and B orthogonal to one another, so that their product is zero; even ranks only",
    "eva": "A from the activations on the training rows, ranks given out by explained variance (Paischer et al. 2024)",
    "pissa": "the largest singular values of each weight; pissa_niter_16: the fast SVD (Meng et al. 2024)",
    "olora": "a QR decomposition of each weight (Büyükakyüz 2024)",
    "loftq": "the error that quantizing each weight made; quantized bases only (Li et al. 2023)",
}
"""The initialisations of LoRA, and what A and B begin as."""

TAKEN_FROM_WEIGHTS = ("pissa", "olora")
"""Initialisations that move a part of each weight into the adapter; saved at twice the rank."""


@dataclass(frozen=True)
class MethodFacts:
    """A PEFT method other than LoRA as recipes know it.

    ``peft_type``: PEFT's name. ``targets``: does it act on linear modules, so that the targets' words hold?
    ``defaults``: settings where PEFT has none that would do. ``tasks``: what PEFT supports it for; empty: all.
    ``quantized``: has PEFT layers of it for quantized bases?
    """

    peft_type: str
    targets: bool = True
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    quantized: bool = False


_PROMPT = {"num_virtual_tokens": 20}

PEFT_METHODS: Mapping[str, MethodFacts] = {}
"""The methods that train as ``method: NAME``, by name."""

RESERVED: Mapping[str, str] = {
    "peft_type": "method",
    "task_type": "task",
    "base_model_name_or_path": "base",
    "revision": "revision",
}
"""Fields of PEFT's configs that the recipe says elsewhere."""
