"""PEFT's renaming of older checkpoints' keys: models change their modules' names from one transformers to the next.

PEFT is asked only where keys don't fit as they stand, since importing it takes longer than loading a small model.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from lorary.adapters.matching.keys import PEFT_PREFIX
from lorary.hub.checkpoint import Checkpoint


def rename_tensors(
    tensors: Mapping[str, torch.Tensor], model: Any, config: Any, adapter: str = "default"
) -> dict[str, torch.Tensor]:
    """The tensors under the names that this transformers gives ``model``'s modules, fused where it fused them.

    These are the two steps of ``PeftModel.from_pretrained``: the model's own key mapping, then PEFT's conversions for
    transformers 5 (``peft.utils.transformers_weight_conversion``).

    Args:
        tensors: a checkpoint's, by key.
        model: the transformers model, or PEFT's around it.
        config: PEFT's config of the adapter.
        adapter: the adapter's name in ``model``.
    """
    from peft.utils.transformers_weight_conversion import convert_peft_adapter_state_dict_for_transformers

    mapping = getattr(model, "_checkpoint_conversion_mapping", None) or {}
    renamed = {_map(key, mapping): tensor for key, tensor in tensors.items()}
    return dict(
        convert_peft_adapter_state_dict_for_transformers(
            model=model, peft_config=config, adapter_state_dict=renamed, adapter_name=adapter
        )
    )


def renamed_keys(checkpoint: Checkpoint, model: Any) -> dict[str, str] | None:
    """Today's name of each key of a LoRA checkpoint, or None where PEFT doesn't rename but fuses them.

    No tensor is read: PEFT's conversion runs on tensors without memory, and each is recognised by its identity.
    """
    from peft import LoraConfig

    keys = list(checkpoint.tensors)
    empty = {key: torch.empty(info.shape, device="meta") for key, info in checkpoint.tensors.items()}
    known = {id(tensor): key for key, tensor in empty.items()}
    renamed = rename_tensors(empty, model, LoraConfig(r=checkpoint.rank or 8))
    back = {known.get(id(tensor)): name for name, tensor in renamed.items()}
    return {key: back[key] for key in keys} if set(back) == set(keys) else None


def _map(key: str, mapping: Mapping[str, str]) -> str:
    """The first of the model's patterns that matches decides, as in ``peft.utils.load_peft_weights``."""
    name = key.removeprefix(PEFT_PREFIX)
    for pattern, replacement in mapping.items():
        changed, count = re.subn(pattern, replacement, name)
        if count:
            return f"{PEFT_PREFIX}{changed}" if key != name else changed
    return key
