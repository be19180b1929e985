"""What each method says about recipes: PEFT's name for it, where it acts, and what it is trained for."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

LORA_METHODS = ("lora", "qlora", "rslora", "dora")
"""LoRA and its kin, whose settings stand under ``lora``; those of every other method stand under ``peft``."""

INITIALISATIONS: Mapping[str, str] = {
    "default": "A Kaiming-uniform, B zero (Hu et al. 2021)",
    "gaussian": "A normal, B zero",
    "orthogonal": "A and B orthogonal to one another, so that their product is zero; even ranks only",
    "eva": "A from the activations on the training rows, ranks given out by explained variance (Paischer et al. 2024)",
    "pissa": "the largest singular values of each weight; pissa_niter_16: the fast SVD (Meng et al. 2024)",
    "olora": "a QR decomposition of each weight (Büyükakyüz 2024)",
    "corda": "what of each weight matters most for its inputs on the training rows (Yang et al. 2024)",
    "corda_kpm": "what of each weight matters least there, so that what the base knows stays (Yang et al. 2024)",
    "loftq": "the error that quantizing each weight made; quantized bases only (Li et al. 2023)",
}
"""The initialisations of LoRA, and what A and B begin as."""

TAKEN_FROM_WEIGHTS = ("pissa", "olora", "corda")
"""Initialisations that move a part of each weight into the adapter; saved at twice the rank."""


@dataclass(frozen=True)
class MethodFacts:
    """A PEFT method other than LoRA as recipes know it.

    ``peft_type``: PEFT's name. ``targets``: the modules it acts on, None where PEFT knows them by the model's kind.
    ``defaults``: settings where PEFT has none that would do. ``tasks``: what PEFT supports it for; empty: all.
    ``quantized``: has PEFT layers of it for quantized bases? ``settings``: those of PEFT's config that mean something
    here; empty: all. ``fixed``: what PEFT is told whatever the recipe says.
    """

    peft_type: str
    targets: Literal["linear", "norms"] | None = "linear"
    defaults: Mapping[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    quantized: bool = False
    settings: tuple[str, ...] = ()
    fixed: Mapping[str, Any] = field(default_factory=dict)


_VIRTUAL = {"num_virtual_tokens": 20}
_GENERATION = ("text-generation",)
# PEFT puts virtual tokens before the text, and has labels for those in these tasks alone.
_WITH_VIRTUAL = ("text-classification", "text-generation", "summarization", "translation")
# Of prefixes it has no class for fill-mask, which is no task of its own.
_WITH_PREFIX = (*_WITH_VIRTUAL, "token-classification", "question-answering", "feature-extraction")

# The run adds what draws A and B to be orthogonal itself, and knows its steps only when its trainer does.
_ADALORA = MethodFacts(
    "ADALORA",
    quantized=True,
    settings=(
        "init_r", "target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "lora_alpha",
        "lora_dropout", "target_modules",
    ),
    fixed={"total_step": sys.maxsize, "orth_reg_weight": 0.0},
)  # fmt: skip

PEFT_METHODS: Mapping[str, MethodFacts] = {
    "adalora": _ADALORA,
    "adamss": MethodFacts("ADAMSS"),
    "beft": MethodFacts("BEFT", None),
    "boft": MethodFacts("BOFT"),
    "c3a": MethodFacts("C3A"),
    "deft": MethodFacts("DEFT"),
    "delora": MethodFacts("DELORA"),
    "fourierft": MethodFacts("FOURIERFT"),
    "frod": MethodFacts("FROD"),
    "glora": MethodFacts("GLORA"),
    "gralora": MethodFacts("GRALORA"),
    "hira": MethodFacts("HIRA"),
    "hra": MethodFacts("HRA"),
    "ia3": MethodFacts("IA3", None, quantized=True),
    "lily": MethodFacts("LILY"),
    "ln-tuning": MethodFacts("LN_TUNING", "norms", quantized=True),
    "loha": MethodFacts("LOHA"),
    "lokr": MethodFacts("LOKR"),
    "miss": MethodFacts("MISS"),
    "oft": MethodFacts("OFT", quantized=True),
    "p-tuning": MethodFacts("P_TUNING", None, {**_VIRTUAL, "encoder_hidden_size": 128}, _WITH_VIRTUAL, quantized=True),
    "peanut": MethodFacts("PEANUT"),
    "prefix-tuning": MethodFacts("PREFIX_TUNING", None, _VIRTUAL, _WITH_PREFIX, quantized=True),
    "prompt-tuning": MethodFacts("PROMPT_TUNING", None, _VIRTUAL, _WITH_VIRTUAL, quantized=True),
    "psoft": MethodFacts("PSOFT"),
    "pvera": MethodFacts("PVERA"),
    "randlora": MethodFacts("RANDLORA"),
    "road": MethodFacts("ROAD"),
    "shira": MethodFacts("SHIRA"),
    "supertuning": MethodFacts("SUPERTUNING"),
    "tinylora": MethodFacts("TINYLORA"),
    "trainable-tokens": MethodFacts("TRAINABLE_TOKENS", None, {}, _GENERATION, quantized=True),
    "unilora": MethodFacts("UNILORA"),
    "vblora": MethodFacts("VBLORA"),
    "vera": MethodFacts("VERA", quantized=True),
    "waveft": MethodFacts("WAVEFT"),
}
"""The methods that train as ``method: NAME``, by name."""

NOT_TRAINED: Mapping[str, str] = {
    "adaption-prompt": "PEFT can't take it off the base again, on which the saved files are checked",
    "cartridge": "its cache is distilled from a text, not trained on rows",
    "cpt": "it needs a loss of its own and context tokens for each row",
    "multitask-prompt-tuning": "it needs a task id with every call",
    "osf": "it trains whole weights, and projects their gradients",
    "poly": "it needs a task id with every call",
    "shadow": "the loader can't serve it",
    "xlora": "it routes between other adapters; `lorary blend` combines them",
}
"""PEFT's methods that can't be trained here, and why."""

RESERVED: Mapping[str, str | None] = {
    "peft_type": "method",
    "task_type": "task",
    "base_model_name_or_path": "base",
    "revision": "revision",
    "inference_mode": None,
    "auto_mapping": None,
    "peft_version": None,
}
"""Fields of PEFT's configs that the run sets, and where the recipe says them."""
