"""What AdaLoRA has trained, as plain LoRA: ``B (E A)`` of the ranks that are left, at the scale 1."""

from __future__ import annotations

from typing import Any

import torch

from lorary.adapters.layer.slots import LowRank
from lorary.hub.errors import TrainingError
from lorary.training.model.base import Base
from lorary.training.model.plain_lora import as_plain_lora
from lorary.training.tasks import Task

_ADAPTER = "default"


def ranks_as_lora(model: Any, base: Base, task: Task) -> Any:
    """A plain LoRA that gives the same updates as a ``PeftModel`` with AdaLoRA's layers, in place of it.

    A rank that was taken away has the singular value 0, and gives nothing; a module without ranks is left out.

    Raises:
        TrainingError: no module has a rank left.
    """
    updates = {
        path: update
        for path, module in model.get_base_model().named_modules()
        if hasattr(module, "lora_E") and _ADAPTER in module.lora_E and (update := _update(module)).rank
    }
    if not updates:
        raise TrainingError("adalora has nothing left: each singular value is 0; train longer, or use method: lora")
    return as_plain_lora(model, base, task, updates)


def _update(layer: Any) -> LowRank:
    a, b, e = (getattr(layer, name)[_ADAPTER].detach().float().cpu() for name in ("lora_A", "lora_B", "lora_E"))
    scale = layer.scaling[_ADAPTER] / (layer.ranknum[_ADAPTER].detach().float().cpu() + 1e-5)  # as PEFT's forward
    left = torch.nonzero(e[:, 0]).flatten()
    return LowRank((a * e * scale)[left].contiguous(), b[:, left].contiguous(), None, 1.0)
