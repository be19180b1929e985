"""The identity of a base model that is in memory: what :mod:`lorary.hub.base` compares."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch

from lorary.hub.base import ARCHITECTURE_FIELDS, compare, fingerprint
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import BaseMismatchError
from lorary.hub.manifest import BaseIdentity


def identify(model: torch.nn.Module, tokenizer: Any, base_id: str, commit: str | None = None) -> BaseIdentity:
    """The identity of ``model`` (a body or a task model around one) and its tokenizer (None where there is none)."""
    return BaseIdentity(
        id=base_id,
        commit=commit,
        fingerprint=fingerprint_model(model),
        tokenizer_sha256=tokenizer_hash(tokenizer),
        chat_template_sha256=_text_hash(getattr(tokenizer, "chat_template", None)),
    )


def match_base(
    checkpoint: Checkpoint, identity: BaseIdentity, quantization: str, *, allow_mismatch: bool
) -> tuple[str, ...]:
    """Was this adapter trained on the backbone of this identity? Returns lines for the user.

    Raises:
        BaseMismatchError: it was trained on another base, and that isn't allowed.
    """
    manifest = checkpoint.manifest
    match = compare(manifest.base if manifest else None, identity)
    notes = list(match.notes)
    if match.same is False and manifest is not None:
        theirs, ours = str(manifest.base.fingerprint)[:12], str(identity.fingerprint)[:12]
        message = (
            f"{checkpoint.source}: trained on {manifest.base.id!r} (fingerprint {theirs}), "
            f"this backbone is {identity.id!r} ({ours})"
        )
        if not allow_mismatch:
            raise BaseMismatchError(f"{message}; open that base, or pass allow_base_mismatch=True to load it anyway")
        notes.append(message)
    if manifest is not None and manifest.numerics.quantization != quantization:
        trained, served = (
            "unquantized" if kind == "none" else kind for kind in (manifest.numerics.quantization, quantization)
        )
        notes.append(f"trained on {trained} weights, served on {served} ones")
    return tuple(notes)


def body_of(model: Any) -> Any:
    """The model without its task head, as transformers' ``base_model`` gives it."""
    body = getattr(model, "base_model", model)
    return body if isinstance(body, torch.nn.Module) else model


def fingerprint_model(model: Any) -> str | None:
    """The base fingerprint of a loaded model, whatever its quantization (:func:`lorary.hub.base.fingerprint`).

    None for a model in float16: it rounds what bfloat16 keeps, so the canonical tensors can't be had from it. None too
    for one half of an encoder-decoder, as some of T5's and BART's classes are: it doesn't tell which base it is of.
    """
    if _is_half(model):
        return None
    if any(tensor.dtype == torch.float16 for _, tensor in _plain_parameters(body_of(model))):
        return None
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    architecture = {name: _field(config, name) for name in ARCHITECTURE_FIELDS}
    return fingerprint(architecture, _plain_tensors(body_of(model)))


def _field(config: Any, name: str) -> Any:
    """A field of a config; where layers have values of their own (Gemma 4's heads), that of all others."""
    if name in (getattr(config, "per_layer_attributes", None) or ()):
        return config.to_dict().get(name)  # asked for it, the config raises
    return getattr(config, name, None)


def _is_half(model: Any) -> bool:
    """Has a model an encoder or a decoder alone where its architecture has both? Its own config may deny that."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES

    body = body_of(model)
    both = model.config.model_type in MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    return both and hasattr(body, "encoder") != hasattr(body, "decoder")


def _plain_parameters(body: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Embeddings and norms, which every quantization leaves alone."""
    for name, module in body.named_modules():
        if isinstance(module, torch.nn.Embedding) or "Norm" in type(module).__name__:
            for suffix, parameter in module.named_parameters(recurse=False):
                # An adapter on the module wraps it; the wrapped module is the same tensor under a longer name.
                yield f"{name}.{suffix}".replace(".base_layer.", "."), parameter.detach()


def _plain_tensors(body: torch.nn.Module) -> Iterator[tuple[str, tuple[int, ...], bytes]]:
    for name, parameter in _plain_parameters(body):
        tensor = parameter.to(device="cpu", dtype=torch.bfloat16).contiguous()
        yield name, tuple(tensor.shape), tensor.view(torch.uint8).numpy().tobytes()


def tokenizer_hash(tokenizer: Any) -> str | None:
    """The sha256 of a fast tokenizer's state, None for any other."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    # Truncation and padding are left in the backend by earlier calls; they are settings, not the tokenizer.
    state = json.loads(backend.to_str())
    state.pop("truncation", None)
    state.pop("padding", None)
    return _text_hash(json.dumps(state, sort_keys=True, ensure_ascii=False))


def _text_hash(text: Any) -> str | None:
    return hashlib.sha256(text.encode()).hexdigest() if isinstance(text, str) else None
