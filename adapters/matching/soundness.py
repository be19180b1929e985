"""Are an adapter's tensors fit to be served: numbers, small enough, and the base's own where they say so?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.keys import KeyPlan
from lorary.hub.errors import KeyMismatchError, NoEffectError, UnsupportedAdapterError

_TAME = 1e4


def largest_values(tensors: Mapping[str, torch.Tensor], source: str) -> dict[str, float]:
    """Each tensor's largest absolute value, all of them numbers.

    Raises:
        NoEffectError: a tensor holds NaN or infinity.
    """
    largest = {}
    for key, tensor in tensors.items():
        # One pass without a copy: the extremes are NaN where any number is, and infinite where one is.
        least, most = map(float, torch.aminmax(tensor)) if tensor.numel() else (0.0, 0.0)
        if not (math.isfinite(least) and math.isfinite(most)):
            raise NoEffectError(f"{source}: {key} holds NaN or infinity; the training run diverged, train again")
        largest[key] = max(-least, most)
    return largest


def are_tame(lowrank: Mapping[str, LowRank], plan: KeyPlan, largest: Mapping[str, float], dtype: torch.dtype) -> bool:
    """Are the factors so small that no pass can overflow for them?

    A transformer normalises between its blocks, so an update can't grow from block to block. Within one, three updates
    multiply at most (gate, up and down), each by at most its factors' Frobenius norms; with ten thousand for each the
    squares that norms take are still within what float32 and bfloat16 hold (3e38). Not so in float16.
    """
    if dtype is torch.float16 or plan.overrides:
        return False
    for site in plan.sites:
        own = lowrank[site.path]
        norms = largest[site.a] * largest[site.b] * math.sqrt(own.a.numel() * own.b.numel())
        vectors = [float(vector.abs().max()) for vector in (own.bias, own.gain) if vector is not None]
        if not max(own.scale * norms, *vectors, 0.0) <= _TAME:
            return False
    return True


def check_range(lowrank: Mapping[str, LowRank], kept: torch.dtype, source: str) -> None:
    """Can the dtype that factors are kept in hold them all?

    Raises:
        UnsupportedAdapterError: it can't.
    """
    if kept is not torch.float16:  # the others reach as far as float32
        return
    most = torch.finfo(kept).max
    for path, own in lowrank.items():
        parts = (own.a, 1), (own.gain, 1), (own.b, own.scale), (own.bias, own.scale)  # as slots have them
        sizes = [float(part.abs().max()) * abs(scale) for part, scale in parts if part is not None]
        if not max(sizes) <= most:
            raise UnsupportedAdapterError(
                f"{source}: has values up to {max(sizes):.3g} at {path!r}, and float16 holds none beyond {most:.0f}; "
                "open the backbone with adapter_dtype='bfloat16' or 'float32'"
            )


def check_copies(plan: KeyPlan, tensors: Mapping[str, torch.Tensor], model: Any, source: str) -> None:
    """Parameters of the base that PEFT saved along must be the backbone's own."""
    if not plan.copies:
        return
    # Tied parameters have several names.
    parameters = {
        name.replace(".base_layer.", "."): p.detach() for name, p in model.named_parameters(remove_duplicate=False)
    }
    for path, key in plan.copies.items():
        own, saved = parameters.get(path), tensors[key]
        if own is None:
            raise KeyMismatchError(f"{source}: unexpected: {key}; the backbone has no parameter {path!r}")
        if own.shape != saved.shape:
            raise KeyMismatchError(
                f"{source}: carries {key!r} of shape {list(saved.shape)}, the backbone's is {list(own.shape)}; "
                "of a resized vocabulary the embedding is needed too: save_pretrained(save_embedding_layers=True)"
            )
        if not is_copy(saved, own):
            raise UnsupportedAdapterError(
                f"{source}: carries {key!r} with other values than the backbone's; trained embeddings can't share it"
            )


def is_copy(saved: torch.Tensor, own: torch.Tensor) -> bool:
    """Does a saved tensor hold the values of the backbone's own, of the same shape?

    The file and the backbone may each have been rounded; both are held to the coarser of the two.
    """
    if not (saved.is_floating_point() and own.is_floating_point()):
        return saved.dtype == own.dtype and torch.equal(saved, own.cpu())
    coarser = max((own.dtype, saved.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    return torch.allclose(own.cpu().to(coarser).float(), saved.to(coarser).float(), rtol=1e-6, atol=1e-6)
