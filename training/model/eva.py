"""EVA (Paischer et al. 2024): A begins with the directions in which the layers' inputs vary on the training rows.

PEFT does the work (``initialize_lora_eva_weights``); what stands here is which rows it looks at, which of their tokens
count, and that it comes to an end.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from lorary.hub.errors import TrainingError
from lorary.training.fitting.losses import IGNORED
from lorary.training.model.base import Base
from lorary.training.precision import precision
from lorary.training.recipe import Recipe
from lorary.training.tasks import Task
from lorary.training.tasks.rows.encoded import Feature

MOST_BATCHES = 1000
"""Passes after which an initialisation that hasn't converged is given up; PEFT itself would go on forever."""


def initialise_eva(model: Any, base: Base, task: Task, recipe: Recipe, rows: Sequence[Feature]) -> None:
    """Set A of a ``PeftModel`` made with ``init_lora_weights="eva"``, and give out its ranks anew.

    The rows are looked at in an order drawn from the run's seed, over and over until the directions stay the same.

    Raises:
        TrainingError: there are too few rows, the rank is too large for a layer, or the directions don't settle.
    """
    from peft import initialize_lora_eva_weights

    config = model.peft_config["default"]
    components = round(max((config.r, *config.rank_pattern.values())) * config.eva_config.rho)
    narrowest = min(layer.in_features for layer in model.modules() if hasattr(layer, "lora_A"))
    if components > narrowest:
        raise TrainingError(
            f"lora.init: eva looks for {components} directions (the rank times rho, {config.eva_config.rho:g}) in "
            f"inputs of {narrowest} numbers; choose a smaller lora.rank"
        )
    # A layer that sees one token of each row, such as a pooler, needs as many rows in a batch as directions.
    size = max(recipe.training.batch_size, components)
    if len(rows) < size:
        raise TrainingError(f"lora.init: eva needs at least {size} training rows, found {len(rows)}; use another init")
    batches = _Batches(task, base.tokenizer, rows, size, recipe.training.seed)
    with precision(model):
        initialize_lora_eva_weights(
            model,
            batches,
            prepare_model_inputs_fn=_masks,
            prepare_layer_inputs_fn=inputs_that_count,
            show_progress_bar=False,
        )


class _Batches:
    """Batches of one size, as often as they are asked for, within reason."""

    def __init__(self, task: Task, tokenizer: Any, rows: Sequence[Feature], size: int, seed: int) -> None:
        order = list(range(len(rows)))
        random.Random(seed).shuffle(order)
        self._task, self._collate, self._rows = task, task.collator(tokenizer), rows
        self._batches = [order[start : start + size] for start in range(0, len(order) - size + 1, size)]
        self._given = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        for batch in self._batches:
            self._given += 1
            if self._given > MOST_BATCHES:
                raise TrainingError(
                    f"lora.init: eva found no steady directions in {MOST_BATCHES} batches; raise "
                    "training.batch_size, lower lora.rank, or use another init"
                )
            yield dict(self._task.inputs(self._collate([dict(self._rows[index]) for index in batch])))


def _masks(batch: dict[str, torch.Tensor], config: Any) -> list[torch.Tensor]:
    """What PEFT asks for: which tokens of a batch count."""
    return token_masks(batch, config.task_type)


def token_masks(batch: Mapping[str, torch.Tensor], task_type: str | None) -> list[torch.Tensor]:
    """Which tokens count, [rows, tokens]: those that aren't padding, and of a language model's those it learns."""
    mask = batch["attention_mask"].bool()
    labels = batch.get("labels")
    if labels is None or labels.ndim != 2:
        return [mask]
    learned = labels != IGNORED
    if task_type == "CAUSAL_LM" and labels.shape == mask.shape:
        return [mask & learned]
    # An encoder-decoder's labels are its decoder's tokens.
    return [learned, mask] if task_type == "SEQ_2_SEQ_LM" else [mask]


def inputs_that_count(layer_input: Any, masks: list[torch.Tensor], name: str) -> torch.Tensor:
    """A layer's inputs, [tokens, inputs]: of those that see all tokens the ones that count, of others all."""
    values = layer_input[0] if isinstance(layer_input, (tuple, list)) else layer_input
    for mask in masks:
        if values.shape[:-1] == mask.shape:
            return torch.as_tensor(values[mask.to(values.device)])
    return torch.as_tensor(values.reshape(-1, values.shape[-1]).contiguous())
