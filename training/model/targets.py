"""Which linear modules of a base get an adapter."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from lorary.adapters.base.identity import body_of
from lorary.adapters.base.modules import map_modules
from lorary.hub.errors import TrainingError
from lorary.training.data import Note
from lorary.training.model.parameters import adaptable_parameters
from lorary.training.model.peft_limits import peft_refusal
from lorary.training.model.picking import counted, in_layers, layer_of, lies_in, matching, short
from lorary.training.recipe.check_method import TARGET_WORDS

_ATTENTION = re.compile(r"att(ention|n)[^.]*\.", re.IGNORECASE)


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
        chosen = [name for name in linear if layer_of(name) is not None and not _ATTENTION.search(name)]
    else:
        parameters = adaptable_parameters(model, saved) if key == "lora.targets" else ()
        beside = f"; and parameters, for lora.parameters: {counted(list(parameters))}" if parameters else ""
        chosen = matching(targets, linear, key, beside=beside)
    if not chosen:
        raise TrainingError(f"{key} {targets!r} matches no linear layer; there are {counted(linear)}")
    if exclude is not None:
        left_out = set(matching(exclude, chosen, "lora.exclude"))
        chosen = [name for name in chosen if name not in left_out]
    if layers is not None:
        chosen = in_layers(chosen, layers, among=chosen)
    if not chosen:
        raise TrainingError(f"lora.exclude leaves none of the layers that {key} names; exclude fewer")
    return _adaptable(model, chosen, targets, key=key, peft_type=peft_type, note=note)


def _adaptable(
    model: Any, chosen: list[str], targets: str | Sequence[str], *, key: str, peft_type: str, note: Note | None
) -> list[str]:
    """What PEFT can adapt of the modules that the settings choose."""
    reasons = {name: peft_refusal(model, name, peft_type) for name in {short(path) for path in chosen}}
    refused = [path for path in chosen if reasons[short(path)]]
    if not refused:
        return chosen
    why, left = reasons[short(refused[0])], [path for path in chosen if path not in refused]
    if targets not in TARGET_WORDS or not left:
        mend = "leave them out, with lora.exclude" if left and key == "lora.targets" else "name others"
        named = repr(targets) if isinstance(targets, str) else ", ".join(targets)
        raise TrainingError(f"{key} {named} matches {counted(refused)}, and {why}; {mend}")
    if note is not None:
        note(f"left out: {counted(refused)}; {why}")
    return left
