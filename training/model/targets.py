"""Which linear modules of a base get an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lorary.adapters.identity import body_of
from lorary.adapters.modules import map_modules
from lorary.hub.errors import TrainingError
from lorary.training.recipe.raw import nearest


def resolve_targets(model: Any, targets: str | Sequence[str], saved: Sequence[str]) -> list[str]:
    """The paths of the linear modules that get an adapter: all of the body's, its attention's, or those asked for.

    PEFT's own ``all-linear`` also takes the head of some task classes, and then fails.

    Raises:
        TrainingError: a name or a pattern matches nothing.
    """
    modules = map_modules(model, body_of(model))
    linear = [
        path
        for path in modules.linears
        if path.startswith(modules.body_prefix) and not set(path.split(".")) & set(saved)
    ]
    if targets == "all-linear":
        chosen = linear
    elif targets == "attention":
        chosen = [name for name in linear if re.search(r"att(ention|n)[^.]*\.", name, re.IGNORECASE)]
    elif isinstance(targets, str):
        chosen = [name for name in linear if re.fullmatch(targets, name)]
    else:
        _demand_each(targets, linear)
        chosen = [name for name in linear if any(name == one or name.endswith(f".{one}") for one in targets)]
    if not chosen:
        raise TrainingError(f"lora.targets {targets!r} matches no linear layer; there are {_suffixes(linear)}")
    return chosen


def _demand_each(targets: Sequence[str], linear: Sequence[str]) -> None:
    for one in targets:
        if not any(name == one or name.endswith(f".{one}") for name in linear):
            known = {name.rpartition(".")[2] for name in linear}
            raise TrainingError(
                f"lora.targets: no linear layer is called {one!r}{nearest(one, known)}; there are {_suffixes(linear)}"
            )


def _suffixes(names: Sequence[str]) -> str:
    return ", ".join(sorted({name.rpartition(".")[2] for name in names})) or "none"
