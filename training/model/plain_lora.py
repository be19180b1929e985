"""One plain LoRA in place of whatever low-rank weights a model was trained with."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch

from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.keys import PEFT_PREFIX
from lorary.training.model.adapter import in_float32, take_off
from lorary.training.model.base import Base
from lorary.training.model.methods import make_peft_model
from lorary.training.tasks import Task


def as_plain_lora(model: Any, base: Base, task: Task, updates: Mapping[str, LowRank]) -> Any:
    """Take the adapter off its base, and put a plain LoRA of these updates on.

    Args:
        model: a ``PeftModel``; what it has trained whole, such as a head, goes into the new one.
        updates: the new adapter's, by the paths of their modules, at the scale 1; each may have a rank of its own.
    """
    from peft import LoraConfig, get_peft_model_state_dict, set_peft_model_state_dict

    trained = get_peft_model_state_dict(model, save_embedding_layers=False)
    state = {key: tensor.detach().float().cpu().clone() for key, tensor in trained.items() if ".lora_" not in key}
    ranks = {name: update.rank for name, update in updates.items()}
    rank = Counter(ranks.values()).most_common(1)[0][0]
    others = {f"^{re.escape(name)}": own for name, own in ranks.items() if own != rank}
    biased = any(update.bias is not None for update in updates.values())
    config = LoraConfig(
        task_type=task.peft_task_type,
        r=rank,
        lora_alpha=rank,
        rank_pattern=dict(others),
        alpha_pattern=dict(others),
        target_modules=list(updates),
        lora_bias=biased,
        modules_to_save=list(base.saved) or None,
    )
    plain = make_peft_model(take_off(model, base), config, "lora")
    for name, update in updates.items():
        key = f"{PEFT_PREFIX}{name}"
        state |= {f"{key}.lora_A.weight": update.a, f"{key}.lora_B.weight": update.b}
        if biased:
            state[f"{key}.lora_B.bias"] = update.bias if update.bias is not None else torch.zeros(len(update.b))
    in_float32(plain)
    set_peft_model_state_dict(plain, state)
    return plain.eval()
