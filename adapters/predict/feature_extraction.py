"""Feature extraction: a row's hidden states, or one vector made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch

from lorary.adapters.predict.base import Row, Setting, read_text
from lorary.hub.errors import UsageError
from lorary.hub.manifest import POOLINGS, Pooling


class FeatureRows:
    """A row's hidden states as nested lists, [1, tokens, hidden], as the feature-extraction pipeline gives them.

    With ``pooling``, the manifest's or the call's, a row's embedding instead, [hidden]: the ``mean`` over its tokens,
    special ones included (as sentence-transformers takes it), its first token's state (``cls``), or its ``last`` one's.
    ``normalize`` brings it to length 1. ``pooling="none"`` asks for hidden states where the manifest pools.
    ``count_tokens`` gives ``{"features", "tokens"}`` in its place, with how many tokens of the row were read.
    """

    parameters: ClassVar = frozenset({"pooling", "normalize", "count_tokens"})

    def __init__(self, setting: Setting, params: Mapping[str, Any]) -> None:
        preprocessing = setting.preprocessing
        self._tokenizer, self._columns, self._prefix, self._limit = (
            setting.tokenizer, preprocessing.columns, preprocessing.prefix, setting.limit,
        )  # fmt: skip
        self._pooling = _pooling(setting.pooling, params)
        self._counts = params.get("count_tokens", False)
        if not isinstance(self._counts, bool):
            raise UsageError(f"count_tokens={self._counts!r}: expected True or False")

    def encode(self, row: Row) -> list[dict[str, Any]]:
        """Tokenize a text."""
        text, _ = read_text(row, self._columns)
        return [
            dict(self._tokenizer(self._prefix + text, truncation=True, max_length=self._limit, return_tensors="pt"))
        ]

    def decode(self, pieces: list[dict[str, Any]], logits: list[torch.Tensor]) -> Any:
        """[1, tokens, hidden] as lists, or [hidden] where it is pooled; in a mapping where tokens are counted."""
        features = [logits[0].tolist()] if self._pooling is None else pool(logits[0], self._pooling).tolist()
        return {"features": features, "tokens": pieces[0]["input_ids"].shape[1]} if self._counts else features


def pool(states: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """One vector [hidden] from a row's hidden states [tokens, hidden], which hold no padding."""
    vector = {"mean": states.mean(dim=0), "cls": states[0], "last": states[-1]}[pooling.mode]
    return torch.nn.functional.normalize(vector, dim=0) if pooling.normalize else vector


def _pooling(trained: Pooling | None, params: Mapping[str, Any]) -> Pooling | None:
    mode, normalize = params.get("pooling"), params.get("normalize")
    if mode not in (None, "none", *POOLINGS):
        raise UsageError(f"pooling={mode!r}: expected {', '.join(POOLINGS)}, or none for every token's state")
    if mode == "none":
        chosen = None
    elif mode is None:
        chosen = trained
    else:
        chosen = Pooling(mode, trained.normalize if trained else False)
    if normalize is None:
        return chosen
    if chosen is None:
        raise UsageError("normalize is for pooled embeddings; pass pooling as well, 'mean' for example")
    return replace(chosen, normalize=bool(normalize))
