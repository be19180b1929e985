"""An adapter with a vocabulary of its own size: its tokenizer got new tokens, or the embedding was cut to fit it.

PEFT keeps the whole embedding (and an untied output layer) beside such an adapter. Its rows are put into a mirror of
the backbone, which so gets layers of its own; the backbone keeps its vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from lorary.adapters.base.loading import quietly
from lorary.adapters.matching.keys import PEFT_PREFIX
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import KeyMismatchError, UnsupportedAdapterError

PREFIXES = (PEFT_PREFIX, "base_model.")
"""PEFT's for tuners, and for prompts, which wrap the model alone."""
_WRAPPERS = ("original_module.", "token_adapter.base_layer.", "base_layer.", "")
"""Where PEFT keeps a layer that it wrapped, the untrained one first."""
_KEPT_IN = frozenset(("original_module", "token_adapter", "base_layer", "modules_to_save"))
TRAINED_ROWS = "token_adapter.trainable_tokens_delta"
"""What PEFT calls the rows of a layer that were trained anew."""


def own_vocabulary(checkpoint: Checkpoint, body: Any) -> int | None:
    """How many tokens an adapter's embedding has, by its file's header; None where they are the backbone's.

    Where no whole embedding was saved, trained rows beyond the backbone's last one tell (``trainable_token_indices``).

    Raises:
        KeyMismatchError: its tensors tell of several sizes.
    """
    embedding = body.get_input_embeddings()
    rows, path = embedding.weight.shape[0], _path_of(body, embedding)
    found: dict[int, str] = {}
    for key, info in checkpoint.tensors.items():
        _, here, part = f".{key}".rpartition(f".{path}.")
        *around, last = part.split(".")
        if here and last == "weight" and len(info.shape) == 2 and _KEPT_IN.issuperset(around):
            found.setdefault(info.shape[0], key)
        elif here and part == "lora_embedding_A" and len(info.shape) == 2:
            found.setdefault(info.shape[1], key)
    if len(found) > 1:
        sizes = "; ".join(f"{size} in {key}" for size, key in found.items())
        raise KeyMismatchError(f"{checkpoint.source}: its embedding has no one number of tokens: {sizes}")
    trained = trained_tokens(checkpoint.config)
    size = next(iter(found), max((rows, *(token + 1 for tokens in trained.values() for token in tokens))))
    return None if size == rows else size


def trained_tokens(config: Mapping[str, Any]) -> dict[str, list[int]]:
    """The tokens whose rows were trained anew, by the end of the layer's name; "" stands for the embedding."""
    given = config.get("trainable_token_indices") or config.get("token_indices") or ()
    named = given.items() if isinstance(given, Mapping) else [("", given)]
    return {
        str(name): [token for token in tokens if type(token) is int]
        for name, tokens in named
        if isinstance(tokens, list)
    }


def resize_vocabulary(model: Any, size: int, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint) -> None:
    """Give a mirror of the backbone an embedding and an output layer of ``size`` tokens, the new rows from the file.

    The rows that the backbone has too stay the backbone's.

    Raises:
        KeyMismatchError: rows of one of them weren't saved, or are of another shape.
        UnsupportedAdapterError: transformers can't resize this architecture's vocabulary.
    """
    before = model.get_input_embeddings().weight.shape[0]
    # A size is a stranger's number: until the file is seen to have the rows, nothing is allocated for them.
    for name, parameter in _parameters(model):
        _saved(name, [size, *parameter.shape[1:]], before, tensors, checkpoint)
    try:
        with quietly():
            model.resize_token_embeddings(size, mean_resizing=False)
    except (NotImplementedError, ValueError, AttributeError) as error:
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: has a vocabulary of {size} tokens, and transformers can't give a "
            f"{type(model).__name__} of {before} one of that size: {error}"
        ) from error
    for name, parameter in _parameters(model):
        saved = _saved(name, list(parameter.shape), before, tensors, checkpoint)
        if saved is not None:
            parameter.data[before:] = saved[before:].to(parameter)


def _parameters(model: Any) -> list[tuple[str, torch.Tensor]]:
    """The embedding's and the output layer's parameters by name; one that they share comes once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
        if layer is not None:
            for name, parameter in layer.named_parameters(recurse=False):
                found.setdefault(id(parameter), (f"{_path_of(model, layer)}.{name}", parameter))
    return list(found.values())


def _saved(
    name: str, shape: list[int], before: int, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint
) -> torch.Tensor | None:
    """The whole parameter as it was saved; None where no row of it is needed, since it is smaller or all were trained.

    Raises:
        KeyMismatchError: rows weren't saved, or are of another shape.
    """
    path, _, last = name.rpartition(".")
    keys = [f"{prefix}{path}.{wrapper}{last}" for prefix in PREFIXES for wrapper in _WRAPPERS]
    key = next((key for key in keys if key in tensors), None)
    size = shape[0]
    if key is None:
        if size > before and not _all_trained(path, before, size, tensors, checkpoint):
            raise KeyMismatchError(
                f"{checkpoint.source}: has a vocabulary of {size} tokens, the backbone one of {before}, and its file "
                f"lacks the new rows of {name!r}; save it again with save_pretrained(save_embedding_layers=True), and "
                "with an untied output layer name both in modules_to_save or in trainable_token_indices"
            )
        return None
    saved = tensors[key]
    if list(saved.shape) != shape:
        raise KeyMismatchError(
            f"{checkpoint.source}: {key} is {list(saved.shape)}, its vocabulary of {size} tokens needs {shape}"
        )
    return saved


def _all_trained(
    path: str, before: int, size: int, tensors: Mapping[str, torch.Tensor], checkpoint: Checkpoint
) -> bool:
    """Are these rows of a layer among those that were trained anew, so that they need no other values?"""
    keys = [f"{prefix}{path}.{TRAINED_ROWS}" for prefix in PREFIXES]
    rows = next((tensors[key].shape[0] for key in keys if key in tensors and tensors[key].ndim == 2), None)
    trained = trained_tokens(checkpoint.config)
    named = [own for name, own in trained.items() if not name or f".{path}".endswith(f".{name}")]
    return any(
        len(own) == rows and len({token for token in own if before <= token < size}) == size - before
        for own in named or trained.values()
    )


def _path_of(model: torch.nn.Module, layer: torch.nn.Module) -> str:
    return next(path for path, module in model.named_modules() if module is layer)
