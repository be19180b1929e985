"""Linear layers of a base that PEFT gives no LoRA of their own, known by the last part of their names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

try:  # PEFT's own checks have no public names; without them it refuses such layers itself, in its own words
    from peft.tuners.tuners_utils import _check_lora_target_modules_mamba
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
except ImportError:
    _check_lora_target_modules_mamba = convert_peft_config_for_transformers = None

_LORA = "LORA"


def peft_refusal(model: Any, name: str, peft_type: str = _LORA) -> str | None:
    """Why PEFT gives layers of this name, the last part of a path, no adapter of this kind; None where it does."""
    if convert_peft_config_for_transformers is None:
        return None
    try:
        _check_lora_target_modules_mamba(SimpleNamespace(peft_type=peft_type), model, name)
    except ValueError:
        return "PEFT gives it no LoRA in Mamba's kin, whose kernels may read its weight without calling it"
    if peft_type == _LORA and _stands_for_experts(model, name):
        return "PEFT takes its name for that of the experts, whose weights are one parameter"
    return None


def _stands_for_experts(model: Any, name: str) -> bool:
    """Would PEFT put the adapter on a mixture's fused experts, or ask for their other half?

    So it reads adapters from before transformers 5, in which each expert had layers of these names. Shared experts
    and the dense first layers have them still.
    """
    from peft import LoraConfig

    config = LoraConfig(target_modules=[name])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return True
    return name not in (config.target_modules or ())
