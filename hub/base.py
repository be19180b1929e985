"""Which base model an adapter belongs to, and whether a loaded backbone is that one.

The fingerprint is made from what a mirror, a local copy, a renamed repository and a pre-quantized copy have in common:
the architecture's sizes and the tensors that quantization leaves alone (embeddings and norms), in bfloat16.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lorary.hub.manifest import BaseIdentity
from lorary.hub.provenance.private import public_base

ARCHITECTURE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
)
"""The config fields that go into a fingerprint, under transformers' standardised names."""


def fingerprint(architecture: Mapping[str, Any], tensors: Iterable[tuple[str, tuple[int, ...], bytes]]) -> str:
    """The sha256 (hex) that identifies a base model.

    Args:
        architecture: :data:`ARCHITECTURE_FIELDS` and their values, ``None`` where the model has no such field.
        tensors: name (relative to the body), shape and little-endian bfloat16 bytes of each embedding and norm,
            in any order.
    """
    shapes = {name: [list(shape), hashlib.sha256(content).hexdigest()] for name, shape, content in tensors}
    fields = {name: architecture.get(name) for name in ARCHITECTURE_FIELDS}
    text = json.dumps({"architecture": fields, "tensors": shapes}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(b"lorary-base-1\n" + text.encode()).hexdigest()


@dataclass(frozen=True)
class BaseMatch:
    """What comparing an adapter's base with a backbone came to.

    ``same`` is None where the adapter doesn't say which base it was trained on, or the backbone's can't be told;
    ``notes`` are lines for the user.
    """

    same: bool | None
    notes: tuple[str, ...] = ()


def compare(adapter: BaseIdentity | None, backbone: BaseIdentity) -> BaseMatch:
    """Is ``backbone`` the base that the adapter was trained on? The fingerprint decides, the rest makes notes."""
    if adapter is None or adapter.fingerprint is None:
        return BaseMatch(None, ("base unverified: the adapter doesn't carry its base's fingerprint",))
    if backbone.fingerprint is None:  # in float16, or of a part of a model
        return BaseMatch(None, ("base unverified: the base in memory has no fingerprint, as in float16",))
    notes = []
    if public_base(adapter.id) != public_base(backbone.id):
        notes.append(f"trained on {adapter.id!r}, loaded on {backbone.id!r}")
    for field, label in (("tokenizer_sha256", "tokenizer"), ("chat_template_sha256", "chat template")):
        theirs, ours = getattr(adapter, field), getattr(backbone, field)
        if theirs and ours and theirs != ours:
            notes.append(f"the {label} differs from the one trained with")
    return BaseMatch(adapter.fingerprint == backbone.fingerprint, tuple(notes))
