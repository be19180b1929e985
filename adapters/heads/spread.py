"""A body that is spread over several devices, whose last layers answer on another one than a head around it is on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch


def bring_answers(modules: Iterable[torch.nn.Module], device: torch.device) -> None:
    """Let these modules answer on ``device``, but for the caches among what they answer, which stay with the layers."""
    from accelerate.utils import send_to_device

    def bring(module: torch.nn.Module, arguments: Any, output: Any) -> Any:
        return send_to_device(output, device, skip_keys="past_key_values")

    for module in modules:
        module.register_forward_hook(bring)
