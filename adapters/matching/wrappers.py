"""Checkpoints as they are saved from a wrapped model, or were by an older PEFT, read as today's PEFT writes them.

Of keys with what ``torch.compile``, data parallelism or PEFT put into them PEFT warns, at most, and answers as the bare
base does. What was put in is known by name, so the keys can be read without it; that each then finds its place is for
the matching to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.unnamed_head import naming_its_head

_WRAPPERS = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PARALLEL = "module."  # of DataParallel and DistributedDataParallel, around the whole
_ADAPTER = re.compile(r"\.(lora_(?:A|B|embedding_A|embedding_B|magnitude_vector))\.([^.]+)((?:\.(?:weight|bias))?)$")
_PARTS = ("weight", "bias")
_BIAS, _BASE_BIAS, _FACTOR = ".bias", ".base_layer.bias", ".lora_A.weight"


def plain_names(keys: Iterable[str]) -> dict[str, str]:
    """Each key without what wrappers put into it, and without the adapter's own name where all have the same one.

    Keys that would then be one are left as they are, all of them.
    """
    names = {key: _WRAPPERS.sub("", key) for key in keys}
    if names and all(name.startswith(_PARALLEL) for name in names.values()):
        names = {key: name.removeprefix(_PARALLEL) for key, name in names.items()}
    found = (_ADAPTER.search(name) for name in names.values())
    adapters = {match[2] for match in found if match is not None} - {*_PARTS}
    if len(adapters) == 1:
        names = {key: _without(name, *adapters) for key, name in names.items()}
    names = _with_base_biases(names)
    return names if len(set(names.values())) == len(names) else {key: key for key in names}


def plain_checkpoint(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint as matching reads it: its tensors under their plain names, its head among ``modules_to_save``.

    Its digest is no longer the file's.
    """
    names = plain_names(checkpoint.tensors)
    config = naming_its_head(checkpoint.config, names.values())
    if config is checkpoint.config and all(key == name for key, name in names.items()):
        return checkpoint
    tensors = {names[key]: info for key, info in checkpoint.tensors.items()}
    return replace(checkpoint, config=config, tensors=tensors)


def _with_base_biases(names: Mapping[str, str]) -> dict[str, str]:
    """The names with each bias of a module that has factors under its base layer, whose it is since PEFT 0.7."""
    known = set(names.values())
    return {
        key: f"{module}{_BASE_BIAS}"
        if (module := name.removesuffix(_BIAS)) != name and f"{module}{_FACTOR}" in known
        else name
        for key, name in names.items()
    }


def _without(name: str, adapter: str) -> str:
    match = _ADAPTER.search(name)
    return f"{name[: match.start()]}.{match[1]}{match[3]}" if match is not None and match[2] == adapter else name
