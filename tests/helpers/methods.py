"""Adapters of every PEFT method, made on the spot by PEFT alone."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from made_once import made_once
from tiny import PEFT_TASK, default_targets, load_base

SETTINGS: dict[str, dict[str, Any]] = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2, "target_modules": None},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 20},
    "IA3": {"feedforward_modules": []},
    "MISS": {"r": 4},
    "PSOFT": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [7, 8, 9], "target_modules": None},
    "VBLORA": {"vector_length": 8, "num_vectors": 16, "topk": 2, "save_only_topk_weights": True},
    "WAVEFT": {"n_frequency": 20},
}
"""What a method needs besides targets to fit a model of hidden size 32."""


@made_once
def make_method(
    base: Path, folder: Path, method: str, *, task: str, seed: int = 1, labels: int = 3, **more: Any
) -> None:
    """Save an adapter of a PEFT method with random weights for ``task`` on ``base``; returns the folder."""
    from peft import get_peft_model
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    torch.manual_seed(seed)
    model = load_base(base, task, labels)
    config_class = PEFT_TYPE_TO_CONFIG_MAPPING[method]
    known = {field.name for field in dataclasses.fields(config_class)}
    usual = {"target_modules": default_targets(model)[:2], "num_virtual_tokens": 4}
    settings = {name: value for name, value in usual.items() if name in known} | SETTINGS.get(method, {}) | more
    peft_model = get_peft_model(model, config_class(task_type=PEFT_TASK[task], **settings))
    for parameter in peft_model.parameters():
        if parameter.requires_grad and parameter.is_floating_point() and parameter.numel():
            torch.nn.init.normal_(parameter, mean=0.0 if parameter.ndim > 1 else 1.0, std=0.2)
    peft_model.save_pretrained(folder)
