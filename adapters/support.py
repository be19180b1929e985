"""What loads how: the one table of PEFT's ``LoraConfig`` fields that the loader knows, and what it does with each.

A field that the table doesn't know, with any value but "off", is refused by name: a variant read as plain LoRA would
load without an error and answer wrongly. ``docs/loading.md`` shows the same table; a test holds both against PEFT's
present ``LoraConfig``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UnsupportedAdapterError

APPLIED: Mapping[str, str] = {
    "r": "the rank of every site that no pattern names",
    "lora_alpha": "the scale: alpha / r, or alpha / sqrt(r) with use_rslora",
    "use_rslora": "the scale alpha / sqrt(r) (Kalajdzievski 2023)",
    "rank_pattern": "a rank of its own for the modules that match",
    "alpha_pattern": "an alpha of its own for the modules that match",
    "target_modules": "which modules must have tensors in the file",
    "exclude_modules": "which of them have none",
    "layers_to_transform": "which layers' modules must have tensors",
    "layers_pattern": "where a layer's number stands in a module's name",
    "modules_to_save": "trained heads and whole linear modules",
    "lora_bias": "a bias added with B",
    "task_type": "the task, where there is no manifest",
}
"""Fields that change what is computed, and how the loader applies them."""

TRAINING_ONLY: Mapping[str, str] = {
    "lora_dropout": "off at inference",
    "inference_mode": "the loader never trains",
    "fan_in_fan_out": "the layout of the wrapped weight, which the delta doesn't touch",
    "eva_config": "how A was initialised",
    "loftq_config": "see init_lora_weights",
    "corda_config": "see init_lora_weights",
    "lora_ga_config": "see init_lora_weights",
    "megatron_core": "only read with megatron_config",
    "qalora_group_size": "only read with use_qalora",
    "runtime_config": "PEFT's own runtime settings",
    "peft_type": "which method; LORA here",
    "peft_version": "who wrote the file",
    "auto_mapping": "how PEFT finds a custom model class",
    "base_model_name_or_path": "compared by fingerprint instead",
    "revision": "compared by fingerprint instead",
}
"""Fields that don't change what a finished adapter computes."""


@dataclass(frozen=True)
class Condition:
    """A field that loads only with some values."""

    allowed: Callable[[Any], bool]
    reason: str


def _off(value: Any) -> bool:
    return value in (None, False, "", "none", [], {})


CONDITIONS: Mapping[str, Condition] = {
    "init_lora_weights": Condition(
        lambda value: isinstance(value, bool) or value in (None, "gaussian", "eva", "orthogonal"),
        "the initialisation rewrote the base's weights; save it with PEFT's "
        "save_pretrained(path_initial_model_for_weight_conversion=...), which converts it to plain LoRA",
    ),
    "bias": Condition(_off, "biases of the base were trained, and the base is shared"),
    "use_dora": Condition(_off, "DoRA isn't supported yet"),
    "use_qalora": Condition(_off, "QALoRA groups the inputs"),
    "alora_invocation_tokens": Condition(_off, "aLoRA acts only after its invocation tokens"),
    "target_parameters": Condition(_off, "LoRA on fused parameters (mixture of experts) isn't supported yet"),
    "trainable_token_indices": Condition(_off, "trained token rows of the embedding aren't supported yet"),
    "layer_replication": Condition(_off, "replicated layers make another backbone"),
    "megatron_config": Condition(_off, "Megatron's parallel layers aren't supported"),
    "arrow_config": Condition(_off, "Arrow routes between several adapters"),
    "use_bdlora": Condition(_off, "BD-LoRA's block-diagonal factors aren't supported"),
    "ensure_weight_tying": Condition(_off, "an adapter tied between embedding and output is not supported yet"),
    "kasa_config": Condition(_off, "KaSA truncates the base's weights"),
    "velora_config": Condition(_off, "VeLoRA isn't supported"),
    "monteclora_config": Condition(_off, "MonteCLoRA samples its weights"),
}
"""Fields that are refused unless their value is harmless."""


def check_supported(checkpoint: Checkpoint) -> None:
    """Refuse an adapter that the slots can't hold as it was trained.

    Raises:
        UnsupportedAdapterError: another PEFT method, or a field with a value that the table doesn't allow; the message
            names all of them.
    """
    if checkpoint.peft_type != "LORA":
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: PEFT method {checkpoint.peft_type!r}; this loader holds LORA adapters. "
            "Load others with peft.PeftModel.from_pretrained"
        )
    refused = []
    for field, value in checkpoint.config.items():
        if field in APPLIED or field in TRAINING_ONLY:
            continue
        condition = CONDITIONS.get(field)
        if condition is None and not _off(value):
            refused.append(f"{field}={value!r} (a LoraConfig field that this version of lorary doesn't know)")
        elif condition is not None and not condition.allowed(value):
            refused.append(f"{field}={value!r} ({condition.reason})")
    if refused:
        raise UnsupportedAdapterError(f"{checkpoint.source}: can't be loaded as it was trained: {'; '.join(refused)}")
