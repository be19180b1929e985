"""Which modules a ``LoraConfig`` targets, by PEFT's own rules.

The rules are those of ``peft.tuners.tuners_utils.check_target_module_exists`` and ``peft.utils.other.get_pattern_key``;
they are restated here because importing peft takes longer than loading a small model, and held against PEFT by a test.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import regex

from lorary.adapters.quantization import HEAD_MODULES
from lorary.hub.errors import UnsupportedAdapterError

_PATIENCE = 1.0  # seconds


def is_target(config: Mapping[str, Any], name: str, *, embedding: bool = False) -> bool:
    """Does this config put LoRA on the module ``name`` (its path in the task model), a linear one or an embedding?"""
    exclude = config.get("exclude_modules")
    if exclude and _names(exclude, name):
        return False
    if any(_match(rf"(^|.*\.){saved}($|\..*)", name) for saved in config.get("modules_to_save") or ()):
        return False
    targets = config.get("target_modules")
    if not targets:
        return False
    if targets == "all-linear":
        return not embedding and name.rpartition(".")[2] not in HEAD_MODULES
    if not _names(targets, name):
        return False
    return isinstance(targets, str) or name in targets or _in_layers(config, name)


def _names(patterns: str | Iterable[str], name: str) -> bool:
    if isinstance(patterns, str):
        return _match(rf"(?:{patterns})$", name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _in_layers(config: Mapping[str, Any], name: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or None
    if patterns is None:
        match = _match(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
    else:
        found = (
            _match(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
            for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        )
        match = next((m for m in found if m), None)
    if match is None:
        return False
    return int(match["index"]) in ([layers] if isinstance(layers, int) else layers)


def rank_and_scale(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """The rank and the scale that the config gives the module ``name``."""
    rank = _by_pattern(config.get("rank_pattern") or {}, name, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", 8))
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def _match(pattern: str, name: str) -> Any:
    """``re.match``, within a second: patterns come from strangers, and some take longer than the universe has.

    Raises:
        UnsupportedAdapterError: the pattern isn't one, or takes too long.
    """
    try:
        return regex.match(pattern, name, timeout=_PATIENCE)
    except regex.error as error:
        raise UnsupportedAdapterError(
            f"{pattern!r} in the adapter's config isn't a regular expression: {error}"
        ) from error
    except TimeoutError as error:
        raise UnsupportedAdapterError(
            f"the pattern {pattern[:80]!r} in the adapter's config takes more than {_PATIENCE:g} s to match {name!r}"
        ) from error


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    for pattern, value in patterns.items():
        if _match(rf"(.*\.)?({pattern})$", name):
            return value
    return default
