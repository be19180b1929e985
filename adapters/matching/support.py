"""What loads how: the one table of PEFT's ``LoraConfig`` fields that the loader knows, and what it does with each.

A field that the table doesn't know, with any value but "off", is refused by name: a variant read as plain LoRA would
load without an error and answer wrongly. ``docs/compatibility.md`` shows the same table; a test holds both against
PEFT's present ``LoraConfig``. The methods other than LoRA are in :mod:`lorary.adapters.matching.methods`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lorary.adapters.matching.methods import REFUSED, THROUGH_PEFT
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
    "modules_to_save": "trained heads and whole linear modules; other modules inside the body go through PEFT",
    "lora_bias": "a bias added with B",
    "use_dora": "a gain on the wrapped module's output, from the magnitude and a norm taken once (Liu et al. 2024)",
    "task_type": "the task, where neither a manifest nor the catalogue says it",
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
    "peft_type": "which method; LORA here, others below",
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


def is_off(value: Any) -> bool:
    """Is a config field at a value that asks for nothing?"""
    return value in (None, False, "", "none", [], {})


CONDITIONS: Mapping[str, Condition] = {
    "init_lora_weights": Condition(
        lambda value: isinstance(value, bool) or value in (None, "gaussian", "eva", "orthogonal"),
        "the initialisation rewrote the base's weights; save it with PEFT's "
        "save_pretrained(path_initial_model_for_weight_conversion=...), which converts it to plain LoRA",
    ),
    "use_qalora": Condition(is_off, "QALoRA groups the inputs, and acts on GPTQ weights alone"),
    "megatron_config": Condition(is_off, "Megatron's parallel layers aren't supported"),
    "arrow_config": Condition(is_off, "Arrow routes between several adapters"),
    "kasa_config": Condition(is_off, "KaSA truncates the base's weights, and the base is shared"),
}
"""Fields that are refused unless their value is harmless."""

BY_PEFT: Mapping[str, str] = {
    "bias": "biases of the base were trained; the adapter has its own copies of them",
    "alora_invocation_tokens": "aLoRA acts only after its invocation tokens (Greenewald et al. 2025)",
    "target_parameters": "LoRA on parameters that no linear module holds (fused experts)",
    "trainable_token_indices": "rows of the embedding that were trained anew",
    "layer_replication": "layers that are run more than once, each time with factors of their own",
    "use_bdlora": "factors in blocks on a diagonal",
    "ensure_weight_tying": "an adapter tied between embedding and output",
    "velora_config": "saves memory in training",
    "monteclora_config": "a mixture of factors, at their means",
}
"""Fields that PEFT itself serves, in a model of the adapter's own, unless they are off."""


_TYPES: Mapping[str, tuple[str, Callable[[Any], bool]]] = {
    "r": ("a whole number of at least 1", lambda value: type(value) is int and value >= 1),
    "lora_alpha": ("a finite number", lambda value: _is_number(value)),
    "rank_pattern": (
        "names and whole numbers of at least 1",
        lambda value: _is_table(value, lambda rank: type(rank) is int and rank >= 1),
    ),
    "alpha_pattern": ("names and finite numbers", lambda value: _is_table(value, lambda alpha: _is_number(alpha))),
    "target_modules": ("a pattern, or a list of names", lambda value: bool(value) and _is_names(value)),
    "exclude_modules": ("a pattern, or a list of names", lambda value: value is None or _is_names(value)),
    "modules_to_save": ("a list of names", lambda value: value is None or _is_names(value, text=False)),
    "layers_to_transform": (
        "a number, or a list of numbers",
        lambda value: value is None or type(value) is int or _is_list(value, lambda layer: type(layer) is int),
    ),
    "layers_pattern": ("a pattern, or a list of them", lambda value: value is None or _is_names(value)),
    "task_type": ("a name", lambda value: value is None or isinstance(value, str)),
}
"""What the fields that the loader applies have to be; checked before anything is computed from them."""


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf")


def _is_list(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and all(is_item(item) for item in value)


def _is_names(value: Any, text: bool = True) -> bool:
    return (text and isinstance(value, str)) or _is_list(value, lambda item: isinstance(item, str))


def _is_table(value: Any, is_item: Callable[[Any], bool]) -> bool:
    return value is None or (isinstance(value, dict) and all(is_item(item) for item in value.values()))


def asks_for_peft(checkpoint: Checkpoint) -> bool:
    """Is this an adapter of another method than LoRA, or one with a field that the slots can't serve?"""
    return checkpoint.peft_type != "LORA" or bool(fields_for_peft(checkpoint))


def fields_for_peft(checkpoint: Checkpoint) -> list[str]:
    """The fields of its config that the slots can't serve."""
    return [field for field in BY_PEFT if not is_off(checkpoint.config.get(field))]


def check_supported(checkpoint: Checkpoint) -> None:
    """Refuse an adapter that can be loaded neither into the slots nor through PEFT as it was trained.

    Raises:
        UnsupportedAdapterError: a PEFT method, or a field with a value, that the tables don't allow; the message names
            all of them.
    """
    method = checkpoint.peft_type
    if method in REFUSED:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: PEFT method {method}: {REFUSED[method]}; load it with "
            "peft.PeftModel.from_pretrained, on a model of its own"
        )
    if method != "LORA":
        if method not in THROUGH_PEFT:
            raise UnsupportedAdapterError(
                f"{checkpoint.source}: PEFT method {method!r}, which this version of lorary doesn't know; "
                f"known: LORA, {', '.join(THROUGH_PEFT)}"
            )
        return
    defaults = {"r": 8, "lora_alpha": 8}
    # What acts on fused parameters or on the embedding's rows alone names no module.
    optional = ("target_modules",) if asks_for_peft(checkpoint) and not checkpoint.config.get("target_modules") else ()
    refused = [
        f"{field}={checkpoint.config.get(field, defaults.get(field))!r} (expected {expected})"
        for field, (expected, is_right) in _TYPES.items()
        if field not in optional and not is_right(checkpoint.config.get(field, defaults.get(field)))
    ]
    for field, value in checkpoint.config.items():
        if field in APPLIED or field in TRAINING_ONLY or field in BY_PEFT:
            continue
        condition = CONDITIONS.get(field)
        if condition is None and not is_off(value):
            refused.append(f"{field}={value!r} (a LoraConfig field that this version of lorary doesn't know)")
        elif condition is not None and not condition.allowed(value):
            refused.append(f"{field}={value!r} ({condition.reason})")
    if refused:
        raise UnsupportedAdapterError(f"{checkpoint.source}: can't be loaded as it was trained: {'; '.join(refused)}")
