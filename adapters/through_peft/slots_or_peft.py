"""Into the slots or through PEFT: asked of a checkpoint's config first, then of its keys."""

from __future__ import annotations

from typing import Any

from lorary.adapters.base.identity import body_of
from lorary.adapters.base.modules import ModuleMap, is_router
from lorary.adapters.matching.keys import PEFT_PREFIX, is_saved
from lorary.adapters.matching.naming import Naming
from lorary.adapters.matching.renaming import renamed_keys
from lorary.adapters.matching.support import asks_for_peft
from lorary.adapters.matching.wrappers import plain_checkpoint
from lorary.adapters.through_peft.vocabulary import own_vocabulary
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UnsupportedAdapterError


def runs_through_peft(checkpoint: Checkpoint, model: Any, modules: ModuleMap) -> bool:
    """Has this adapter to run through PEFT, since its config or its keys ask for what the slots can't hold?

    A vocabulary of another size than the backbone's does. Of keys these do: low-rank factors at a module that is
    neither linear nor an embedding; a module of the body that was trained whole and isn't linear; and factors of single
    experts, which transformers has fused since.

    Raises:
        UnsupportedAdapterError: its factors are those of a router, on which PEFT can't run them either.
    """
    checkpoint = plain_checkpoint(checkpoint)
    if asks_for_peft(checkpoint) or own_vocabulary(checkpoint, body_of(model)) is not None:
        return True
    factors, whole = _module_names(checkpoint)
    naming = Naming.guess([*factors, *whole], modules)
    places = {name: naming.locate(name, modules) for name in (*factors, *whole)}
    others = [place for name in factors if (place := places[name]) in modules.others]
    if routers := [place for place in others if place and is_router(model.get_submodule(place))]:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: updates the router {routers[0]!r}, which answers with scores and a choice of "
            "experts; LoRA acts on linear maps, and PEFT's own fails there too. Train with exclude_modules=['router']"
        )
    if others:
        return True
    saved = tuple(checkpoint.config.get("modules_to_save") or ())
    inside = [name for name in whole if is_saved(name, saved)]
    if any(place is not None and place not in modules.linears for place in (places[name] for name in inside)):
        return True
    return any(places[name] is None for name in factors) and renamed_keys(checkpoint, model) is None


def _module_names(checkpoint: Checkpoint) -> tuple[list[str], list[str]]:
    """The modules that the keys name: with low-rank factors, and with whole parameters."""
    factors: dict[str, None] = {}
    whole: dict[str, None] = {}
    for key in checkpoint.tensors:
        if key.startswith(PEFT_PREFIX):
            name = key.removeprefix(PEFT_PREFIX)
            head, found, _ = name.partition(".lora_")
            if found:
                factors[head] = None
            else:
                whole[name.replace(".base_layer.", ".").rpartition(".")[0]] = None
    return list(factors), list(whole)
