"""Which linear modules of a base get an adapter."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lorary.adapters.base.identity import body_of
from lorary.adapters.base.modules import map_modules
from lorary.hub.errors import TrainingError
from lorary.training.data import Note
from lorary.training.model.peft_limits import peft_refusal
from lorary.training.recipe.check_method import TARGET_WORDS
from lorary.training.recipe.raw import nearest

_ATTENTION = re.compile(r"att(ention|n)[^.]*\.", re.IGNORECASE)
_LAYER = re.compile(r"(?:^|\.)(\d+)\.")


def resolve_targets(
    model: Any,
    targets: str | Sequence[str],
    saved: Sequence[str],
    *,
    exclude: str | Sequence[str] | None = None,
    layers: str | Sequence[int] | None = None,
    key: str = "lora.targets",
    peft_type: str = "LORA",
    note: Note | None = None,
) -> list[str]:
    """The paths of the linear modules that get an adapter: all of the body's, its attention's, or those asked for.

    PEFT's own ``all-linear`` also takes the head of some task classes, and then fails. What PEFT gives no adapter of
    this kind (:func:`peft_refusal`) is left out where ``targets`` is a word, an error where a list or pattern names it.

    Args:
        model: a base with its task's head.
        targets: ``all-linear``, ``attention``, ``mlp`` (what of the numbered layers isn't attention), a list of names
            or ends of paths, or a regular expression that matches whole paths.
        saved: modules that are trained whole.
        exclude: names or a regular expression of modules to leave out.
        layers: numbers of the layers to keep, negative ones from the end, ``first N`` or ``last N``.
        key: the setting that errors name.
        peft_type: PEFT's name for the method.
        note: is told what is left out.

    Raises:
        TrainingError: a name or a pattern matches nothing; the message lists what could match. Or it matches what PEFT
            can't adapt.
    """
    modules = map_modules(model, body_of(model))
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    linear = [
        path
        for path in modules.linears
        if path.startswith(modules.body_prefix)
        and not lies_in(path, saved)
        # A T5's language-modelling head stands in its body; it stays everybody's.
        and (head is None or model.get_submodule(path) is not head)
    ]
    if targets == "all-linear":
        chosen = linear
    elif targets == "attention":
        chosen = [name for name in linear if _ATTENTION.search(name)]
    elif targets == "mlp":
        chosen = [name for name in linear if _layer(name) is not None and not _ATTENTION.search(name)]
    else:
        chosen = _matching(targets, linear, key)
    if not chosen:
        raise TrainingError(f"{key} {targets!r} matches no linear layer; there are {_counted(linear)}")
    if exclude is not None:
        left_out = set(_matching(exclude, chosen, "lora.exclude"))
        chosen = [name for name in chosen if name not in left_out]
    if layers is not None:
        chosen = _in_layers(chosen, layers)
    if not chosen:
        raise TrainingError(f"lora.exclude leaves none of the layers that {key} names; exclude fewer")
    return _adaptable(model, chosen, targets, key=key, peft_type=peft_type, note=note)


def _adaptable(
    model: Any, chosen: list[str], targets: str | Sequence[str], *, key: str, peft_type: str, note: Note | None
) -> list[str]:
    """What PEFT can adapt of the modules that the settings choose."""
    reasons = {name: peft_refusal(model, name, peft_type) for name in {_last(path) for path in chosen}}
    refused = [path for path in chosen if reasons[_last(path)]]
    if not refused:
        return chosen
    why, left = reasons[_last(refused[0])], [path for path in chosen if path not in refused]
    if targets not in TARGET_WORDS or not left:
        mend = "leave them out, with lora.exclude" if left and key == "lora.targets" else "name others"
        named = repr(targets) if isinstance(targets, str) else ", ".join(targets)
        raise TrainingError(f"{key} {named} matches {_counted(refused)}, and {why}; {mend}")
    if note is not None:
        note(f"left out: {_counted(refused)}; {why}")
    return left


def lies_in(path: str, modules: Sequence[str]) -> bool:
    """Is it one of these modules or within one? They are named by their paths, or by the ends of these."""
    return any(f".{module}." in f".{path}." for module in modules)


def _matching(patterns: str | Sequence[str], names: Sequence[str], key: str) -> list[str]:
    """The names that match a regular expression, or one of a list of names, each of which has to match."""
    if isinstance(patterns, str):
        found = [name for name in names if re.fullmatch(patterns, name)]
        if not found:
            raise TrainingError(f"{key} {patterns!r} matches no linear layer; there are {_counted(names)}")
        return found
    for one in patterns:
        if not any(_is(name, one) for name in names):
            known = {_last(name) for name in names}
            raise TrainingError(
                f"{key}: no linear layer is called {one!r}{nearest(one, known)}; there are {_counted(names)}"
            )
    return [name for name in names if any(_is(name, one) for one in patterns)]


def _last(path: str) -> str:
    return path.rpartition(".")[2]


def _is(name: str, one: str) -> bool:
    return name == one or name.endswith(f".{one}")


def _in_layers(names: Sequence[str], layers: str | Sequence[int]) -> list[str]:
    there = sorted({layer for name in names if (layer := _layer(name)) is not None})
    if isinstance(layers, str):
        which, _, count = layers.partition(" ")
        wanted = set(there[: int(count)] if which == "first" else there[-int(count) :])
        absent = [int(count)] if int(count) > len(there) else []
    else:
        absent = [layer for layer in layers if (layer not in there if layer >= 0 else -layer > len(there))]
        wanted = {layer if layer >= 0 else there[layer] for layer in layers if layer not in absent}
    if absent or not wanted:
        numbers = f"{there[0]} to {there[-1]}" if there else "no numbered ones"
        raise TrainingError(f"lora.layers: {layers!r} asks for layers that aren't there; the targets have {numbers}")
    return [name for name in names if _layer(name) in wanted]


def _layer(name: str) -> int | None:
    """The number of the layer that a module lies in: the first number in its path."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def _counted(names: Sequence[str]) -> str:
    """The last parts of paths, with how many modules are called so."""
    counts = Counter(_last(name) for name in names)
    return ", ".join(f"{name} ({count})" for name, count in sorted(counts.items())) or "none"
