"""Which modules a ``LoraConfig`` targets, by PEFT's own rules.

The rules are those of ``peft.tuners.tuners_utils.check_target_module_exists``; they are restated here because importing
peft takes longer than loading a small model, and held against PEFT by a test.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from lorary.adapters.base.quantization import HEAD_MODULES
from lorary.hub.comparing.scaling import match_pattern
from lorary.hub.errors import UnsupportedAdapterError

MOST_PATTERNS = 1000
"""Of a field, in a config that may be a stranger's: each is compiled, and held against each module."""


def is_target(config: Mapping[str, Any], name: str, *, embedding: bool = False) -> bool:
    """Does this config put LoRA on the module ``name`` (its path in the task model), a linear one or an embedding?"""
    exclude = config.get("exclude_modules")
    if exclude and _names(exclude, name):
        return False
    if _is_saved_whole(config.get("modules_to_save") or (), name):
        return False
    targets = config.get("target_modules")
    if not targets:
        return False
    if targets == "all-linear":
        return not embedding and name.rpartition(".")[2] not in HEAD_MODULES
    if not _names(targets, name):
        return False
    return isinstance(targets, str) or name in targets or _in_layers(config, name)


def _is_saved_whole(saved: Collection[str], name: str) -> bool:
    """Does ``modules_to_save`` name the module, or one around it, by one part of its path or by an expression?"""
    # A plain name is a part; to compile an expression for each of thousands, and for each module, takes minutes.
    if not set(name.split(".")).isdisjoint(saved):
        return True
    others = [pattern for pattern in saved if not pattern.isidentifier()]
    return any(match_pattern(rf"(^|.*\.){pattern}($|\..*)", name) for pattern in _few(others, "modules_to_save"))


def _few(patterns: Sequence[str], field: str) -> Sequence[str]:
    if len(patterns) > MOST_PATTERNS:
        raise UnsupportedAdapterError(f"more than {MOST_PATTERNS:,} patterns in {field} of the adapter's config")
    return patterns


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
            for pattern in ([patterns] if isinstance(patterns, str) else _few(patterns, "layers_pattern"))
        )
        match = next((m for m in found if m), None)
    if match is None:
        return False
    return int(match["index"]) in ([layers] if isinstance(layers, int) else layers)
