"""A body that is spread over several devices, whose last layers answer on another one than a head around it is on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle


def bring_answers(modules: Iterable[torch.nn.Module], device: torch.device) -> list[RemovableHandle]:
    """Let these modules answer on ``device``, but for the caches among what they answer, which stay with the layers.

    Returns:
        Handles, with which that ends.
    """
    from accelerate.utils import send_to_device

    def bring(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        return send_to_device(output, device, skip_keys="past_key_values")

    return [module.register_forward_hook(bring) for module in modules]
