"""Which modules a ``LoraConfig`` targets, by PEFT's own rules.

The rules are those of ``peft.tuners.tuners_utils.check_target_module_exists``; they are restated here because importing
peft takes longer than loading a small model, and held against PEFT by a test.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from lorary.adapters.base.quantization import HEAD_MODULES
from lorary.hub.comparing.scaling import match_pattern


def is_target(config: Mapping[str, Any], name: str, *, embedding: bool = False) -> bool:
    """Does this config put LoRA on the module ``name`` (its path in the task model), a linear one or an embedding?"""
    exclude = config.get("exclude_modules")
    if exclude and _names(exclude, name):
        return False
    if any(match_pattern(rf"(^|.*\.){saved}($|\..*)", name) for saved in config.get("modules_to_save") or ()):
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
        return match_pattern(rf"(?:{patterns})$", name) is not None
    return any(name == pattern or name.endswith(f".{pattern}") for pattern in patterns)


def _in_layers(config: Mapping[str, Any], name: str) -> bool:
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    patterns = config.get("layers_pattern") or None
    if patterns is None:
        match = match_pattern(r".*?\.[^.]*\.(?P<index>\d+)\.", name)
    else:
        found = (
            match_pattern(rf"(?:^|.*?\.){pattern}\.(?P<index>\d+)\.", name)
            for pattern in ([patterns] if isinstance(patterns, str) else patterns)
        )
        match = next((m for m in found if m), None)
    if match is None:
        return False
    return int(match["index"]) in ([layers] if isinstance(layers, int) else layers)
