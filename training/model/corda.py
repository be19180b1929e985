"""CorDA (Yang et al. 2024): the part of each weight that matters most, or least, for what its layer sees on the rows.

As PEFT does it, but for which tokens count: PEFT's hook takes one row without padding at a time. The base's weights
stay as they are (:mod:`lorary.training.model.initialisation`).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch

from lorary.hub.errors import TrainingError
from lorary.training.model.base import Base
from lorary.training.model.eva import inputs_that_count, token_masks
from lorary.training.precision import answering
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task
from lorary.training.tasks.rows.encoded import Feature

MOST_ROWS = 256
"""As many as PEFT's documentation finds enough."""

Factors = tuple[torch.Tensor, torch.Tensor]


def corda_factors(
    model: Any, layers: Sequence[tuple[str, Any]], base: Base, task: Task, recipe: Recipe, rows: Sequence[Feature],
    weight_of: Callable[[Any], torch.Tensor],
) -> Callable[[str, Any], Factors]:  # fmt: skip
    """Factors A and B of a layer, from its weight and the covariance of its inputs on the training rows.

    Args:
        model: a ``PeftModel``, whose adapter does nothing yet.
        layers: PEFT's layers, by their paths in the base.
        rows: the training rows' features; up to :data:`MOST_ROWS` are looked at, drawn by the run's seed.
        weight_of: a linear module's weight, [outputs, inputs] in float32.

    Raises:
        TrainingError: a layer sees nothing of the rows, or what it sees isn't numbers.
    """
    from peft import LoraConfig
    from peft.tuners.lora import Linear

    seen = _covariances(model, layers, base, task, recipe, rows)
    keeps = recipe.lora.init == "corda_kpm"

    def factors(path: str, layer: Any) -> Factors:
        weight, rank = weight_of(layer.get_base_layer()), layer.r["default"]
        copy: Any = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
        copy.weight = torch.nn.Parameter(weight.clone(), requires_grad=False)
        u, s, v = decompose(weight, seen[path])
        part = slice(-rank, None) if keeps else slice(rank)
        copy.eigens = SimpleNamespace(U_WC=u[:, part], S_WC=s[part], V_WC=v[:, part])
        alpha = layer.scaling["default"] * rank
        made = Linear(
            copy, "default", LoraConfig(r=rank, lora_alpha=alpha, init_lora_weights="corda"), r=rank, lora_alpha=alpha
        )
        return made.lora_A["default"].weight.detach(), made.lora_B["default"].weight.detach()

    return factors


def decompose(weight: torch.Tensor, covariance: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``U, S, V`` with ``U S V' = W`` and ``U S (V' C)`` the singular value decomposition of ``W C``.

    As PEFT's ``collect_eigens_for_layer``, which can't be imported without a package that PEFT doesn't ask for: C's
    diagonal grows until C can be inverted.

    Args:
        weight: W, [outputs, inputs].
        covariance: C, [inputs, inputs].
    """
    one = torch.eye(len(covariance), device=covariance.device)
    damp = 0.01
    while True:
        firm = covariance + damp * covariance.diagonal().mean() * one
        inverse = torch.linalg.inv(firm)
        if torch.dist(firm @ inverse, one) < 0.05:
            break
        damp *= 2
    u, s, vh = torch.linalg.svd(weight @ firm, full_matrices=False)
    return u, s, (vh @ inverse).T


def _covariances(
    model: Any, layers: Sequence[tuple[str, Any]], base: Base, task: Task, recipe: Recipe, rows: Sequence[Feature]
) -> dict[str, torch.Tensor]:
    """By path: the mean over the batches of X'X, [inputs, inputs], X being a layer's inputs by their largest number."""
    order = list(range(len(rows)))
    random.Random(recipe.training.seed).shuffle(order)
    order, size = order[:MOST_ROWS], recipe.training.batch_size
    collate, device = task.collator(base.tokenizer), next(model.parameters()).device
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    masks: list[torch.Tensor] = []

    def look(path: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...]) -> None:
            values = inputs_that_count(inputs, masks, path).detach().float()
            if not len(values):
                return
            scaled = values / values.max().abs().clamp(min=1e-12)
            product = scaled.T @ scaled
            if not bool(product.isfinite().all()):
                raise TrainingError(f"lora.init: corda: what {path} is given isn't a number; use another init")
            sums[path] = sums[path] + product if path in sums else product
            counts[path] = counts.get(path, 0) + 1

        return hook

    handles = [layer.register_forward_pre_hook(look(path)) for path, layer in layers]
    try:
        with answering(model):
            for start in range(0, len(order), size):
                batch = task.inputs(collate([dict(rows[place]) for place in order[start : start + size]]))
                masks[:] = token_masks(batch, model.peft_config["default"].task_type)
                model(**{name: tensor.to(device) for name, tensor in batch.items()})
    finally:
        for handle in handles:
            handle.remove()
    if unseen := [path for path, _ in layers if path not in sums]:
        raise TrainingError(f"lora.init: corda: {unseen[0]} sees nothing of the training rows; use another init")
    return {path: total / counts[path] for path, total in sums.items()}
