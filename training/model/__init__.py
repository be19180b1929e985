"""From a base to a model that can be trained: head, quantization, targets, the adapter, all seeded."""

from lorary.training.model.adalora import ranks_as_lora
from lorary.training.model.adapter import add_adapter, take_off
from lorary.training.model.base import Base, head_modules, load_for, refuse_other_kinds, reseed
from lorary.training.model.initialisation import initialise, settle
from lorary.training.model.methods import (
    adapter_config,
    check_settings,
    chosen_parameters,
    chosen_targets,
    virtual_tokens,
    wrap,
)
from lorary.training.model.new_tokens import Before, with_tokens, without_tokens
from lorary.training.model.plain_lora import as_plain_lora
from lorary.training.model.shelf import Shelf
from lorary.training.model.targets import resolve_targets

__all__ = [
    "Base",
    "Before",
    "Shelf",
    "adapter_config",
    "add_adapter",
    "as_plain_lora",
    "check_settings",
    "chosen_parameters",
    "chosen_targets",
    "head_modules",
    "initialise",
    "load_for",
    "ranks_as_lora",
    "refuse_other_kinds",
    "reseed",
    "resolve_targets",
    "settle",
    "take_off",
    "virtual_tokens",
    "with_tokens",
    "without_tokens",
    "wrap",
]
