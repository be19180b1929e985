"""The rank and the scale that a ``LoraConfig`` gives a module, by PEFT's own rules.

The rules are those of ``peft.utils.other.get_pattern_key``. They are restated here because importing peft takes longer
than loading a small model, and held against PEFT by a test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import regex

from lorary.hub.errors import UnsupportedAdapterError

_PATIENCE = 1.0  # seconds for one module's name
_MOST = 1000  # regular expressions of a config
_PLAIN = regex.compile(r"[\w.-]+")
_LONGEST = 20_000  # characters of a pattern
_HUGE = regex.compile(r"\{[0-9, ]*[0-9]{4}")
"""Repetitions that are counted in thousands take gigabytes before anything is matched; no module's name needs them."""


def rank_and_scale(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """The rank and the scale that the config gives the module ``name``."""
    rank = _by_pattern(config.get("rank_pattern") or {}, name, config.get("r", 8))
    alpha = _by_pattern(config.get("alpha_pattern") or {}, name, config.get("lora_alpha", 8))
    return rank, alpha / math.sqrt(rank) if config.get("use_rslora") else alpha / rank


def match_pattern(pattern: str, name: str) -> Any:
    """``re.match``, within a second: patterns come from strangers, and some take longer than the universe has.

    Raises:
        UnsupportedAdapterError: the pattern isn't one, or takes too long.
    """
    if len(pattern) > _LONGEST or _HUGE.search(pattern):
        raise UnsupportedAdapterError(
            f"the pattern {pattern[:80]!r} in the adapter's config is too large; expected at most {_LONGEST:,} "
            "characters, and repetitions of at most 999"
        )
    try:
        return regex.match(pattern, name, timeout=_PATIENCE)
    except (regex.error, RecursionError) as error:
        raise UnsupportedAdapterError(
            f"{pattern!r} in the adapter's config isn't a regular expression: {error}"
        ) from error
    except TimeoutError as error:
        raise UnsupportedAdapterError(
            f"the pattern {pattern[:80]!r} in the adapter's config takes more than {_PATIENCE:g} s to match {name!r}"
        ) from error


def _by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    expressions = 0
    for pattern, value in patterns.items():
        if _PLAIN.fullmatch(pattern):
            if _ends_with(name, pattern):
                return value
            continue
        expressions += 1
        if expressions > _MOST:
            raise UnsupportedAdapterError(f"more than {_MOST:,} regular expressions in the adapter's config")
        if match_pattern(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def _ends_with(name: str, pattern: str) -> bool:
    """What the expression ``(.*\\.)?(pattern)$`` says of a plain one, in which a dot is any sign.

    A config may list each module by its whole name: to compile thousands of expressions for each takes minutes.
    """
    start = len(name) - len(pattern)
    if start < 0 or (start > 0 and name[start - 1] != "."):
        return False
    return all(wanted in (found, ".") for found, wanted in zip(name[start:], pattern, strict=True))
