"""From a base to a model that can be trained: head, quantization, targets, the adapter, all seeded."""

from lorary.training.model.adapter import add_adapter, lora_config, take_off, wrap
from lorary.training.model.base import Base, head_modules, load_for, reseed
from lorary.training.model.initialisation import initialise, settle
from lorary.training.model.targets import resolve_targets

__all__ = [
    "Base",
    "add_adapter",
    "head_modules",
    "initialise",
    "load_for",
    "lora_config",
    "reseed",
    "resolve_targets",
    "settle",
    "take_off",
    "wrap",
]
