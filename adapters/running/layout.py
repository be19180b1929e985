"""Do a model's layers keep a batch's rows apart? Asked by watching what each adapted layer is given.

Routing takes a layer's first dimension for the rows. Models that put the sequence first (XLNet, Longformer), share
a pass between rows (DeBERTa's relative positions) or gather each expert's tokens (Switch Transformers) don't fit that.
Layers that see flattened tokens, [rows * tokens, inputs] as shared experts do, fit: each row's tokens stand in order.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch

from lorary.adapters.layer.routing import routed
from lorary.adapters.running.inference import Inference

_TOLERANCE = 0.05  # of an input's largest value: what 8-bit rounding may move a row by when its batch mate changes
_TOKENS = 8  # of a row; Funnel, which pools them, doesn't run on fewer than five


class _Witness:
    """In a routing's place: notes each adapted layer's input and lets the layer be."""

    closed = False
    home = None

    def __init__(self) -> None:
        self.seen: list[tuple[str, torch.Tensor]] = []

    def apply(self, path: str, layer: torch.nn.Module, x: torch.Tensor, args: Any, kwargs: Any) -> torch.Tensor:
        self.seen.append((path, x.detach()))
        output: torch.Tensor = layer(x, *args, **kwargs)
        return output


def rows_come_first(inference: Inference, sites: Collection[str]) -> bool:
    """Run two rows twice, the second time with another second row: the first half of every input must stay as it was.

    Nothing of an adapter is in this, so a slight one can't hide a layout that doesn't fit. An expert of its own among
    the adapted ``sites`` settles it at once: which tokens it is given is the router's choice, which two rows may hide.
    """
    if any("experts" in path.split(".") for path in sites):
        return False
    vocabulary = inference.vocabulary
    ids = torch.arange(1, 3 * _TOKENS + 1, device=inference.device) * vocabulary // (3 * _TOKENS + 1)
    first, second, other = ids.reshape(3, _TOKENS)
    one, two = (_watch(inference, torch.stack([first, mate])) for mate in (second, other))
    if len(one) != len(two):
        return False
    return all(_same_half(x, y) for (_, x), (_, y) in zip(one, two, strict=True))


def _watch(inference: Inference, ids: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    witness = _Witness()
    with torch.no_grad(), routed(witness):  # type: ignore[arg-type]
        inference.model(**inference.batch(ids))
    return witness.seen


def _same_half(x: torch.Tensor, y: torch.Tensor) -> bool:
    if x.shape != y.shape or x.shape[0] % 2:
        return False
    half = x.shape[0] // 2
    return float((x[:half] - y[:half]).abs().max()) <= _TOLERANCE * float(x.abs().max())
