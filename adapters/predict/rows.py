"""Predicting the rows of one call, whatever their tasks: one pass for all that are scored, then those that generate.

Tokenizing and reading are a predictor's (:mod:`lorary.adapters.predict.table`); what lies between is one padded batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.layer.routing import Routing
from lorary.adapters.predict.base import Row
from lorary.adapters.predict.filling import fill_rows, fills
from lorary.adapters.predict.generation import GENERATED, ROLES, generated
from lorary.adapters.predict.table import Parameters, row_predictor, task_of_row
from lorary.adapters.running.forward import forward_rows
from lorary.adapters.text.generate import prompt_of
from lorary.hub.errors import UsageError

if TYPE_CHECKING:
    from lorary.adapters.adapter import Adapter
    from lorary.adapters.running.inference import Inference


def predict_rows(inference: Inference, rows: Sequence[Row], routing: Routing, params: Parameters) -> list[Any]:
    """One prediction per row, in the shape that the row's task gives it."""
    inference.demand_evaluation()
    tasks = [task_of_row(adapter) for adapter in routing.adapters]
    filling = [index for index, adapter in enumerate(routing.adapters) if fills(adapter)]
    generating = [index for index, task in enumerate(tasks) if task in GENERATED]
    scoring = sorted(set(range(len(rows))).difference(filling, generating))
    found: dict[int, Any] = {}
    for indexes, predict in ((scoring, _score), (filling, _fill), (generating, _generate)):
        if indexes:
            chosen = [rows[index] for index in indexes]
            found |= zip(indexes, predict(inference, chosen, routing.subset(indexes), params), strict=True)
    return [found[index] for index in range(len(rows))]


def _score(inference: Inference, rows: Sequence[Row], routing: Routing, params: Parameters) -> list[Any]:
    predictors = {
        adapter: row_predictor(
            adapter, inference.tokenizer_of(adapter), inference.max_length, params[task_of_row(adapter)]
        )
        for adapter in set(routing.adapters)
    }
    own = [predictors[adapter] for adapter in routing.adapters]
    with inference.tokenizing:
        encoded = [predictor.encode(row) for predictor, row in zip(own, rows, strict=True)]
    # A row that is too long comes as several pieces; each is a row of the batch, with its row's adapter.
    owners = [index for index, pieces in enumerate(encoded) for _ in pieces]
    flat = [piece for pieces in encoded for piece in pieces]
    made: dict[int, torch.Tensor] = {}
    lengths = [piece["input_ids"].shape[1] for piece in flat]
    if 0 in lengths:
        raise UsageError("an empty text: this tokenizer adds no token of its own, so there is nothing to read")
    classifiers = [_classifier(routing.adapters[owner]) for owner in owners]
    for part in inference.padding.groups(lengths, generating=False, classifiers=classifiers) if flat else ():
        made |= zip(
            part, _pass(inference, [flat[index] for index in part], [owners[i] for i in part], routing), strict=True
        )
    outputs = iter(made[index] for index in range(len(flat)))
    return [
        predictor.decode(pieces, [next(outputs) for _ in pieces])
        for predictor, pieces in zip(own, encoded, strict=True)
    ]


def _classifier(adapter: Adapter | None) -> Any:
    """The task model of a row that is answered as a whole, None for other rows."""
    if adapter is None or adapter.head is None or adapter.task != "text-classification":
        return None
    return adapter.head.model


def _pass(
    inference: Inference, pieces: Sequence[dict[str, Any]], owners: Sequence[int], routing: Routing
) -> list[torch.Tensor]:
    """Each piece's logits from one padded batch, without the padding; ``owners`` are the rows that they are of."""
    batch = inference.pad(pieces)
    asked = {index: piece["asked"] for index, piece in enumerate(pieces) if "asked" in piece}
    made = forward_rows(inference.body, batch, routing.subset(owners), rows_first=inference.rows_first, asked=asked)
    padded = batch["input_ids"].shape[1]
    return [_unpad(logits, piece, padded) for logits, piece in zip(made, pieces, strict=True)]


def _unpad(logits: torch.Tensor, piece: dict[str, Any], padded: int) -> torch.Tensor:
    """Per-token logits without their padding (a classifier's have none), float32 on the CPU."""
    per_token = logits.ndim == 2 and logits.shape[0] == padded
    return (logits[: piece["input_ids"].shape[1]] if per_token else logits).float().cpu()


def _fill(inference: Inference, rows: Sequence[Row], routing: Routing, params: Parameters) -> list[Any]:
    return fill_rows(inference, rows, routing, params["fill-mask"])


def _generate(inference: Inference, rows: Sequence[Row], routing: Routing, params: Parameters) -> list[Any]:
    tasks = [task_of_row(adapter) for adapter in routing.adapters]
    settings = dict(params[tasks[0]])  # generating tasks all have the same share
    tools, kwargs = settings.pop("tools", None), settings.pop("chat_template_kwargs", None)
    prompts = [
        prompt_of(row, adapter, ROLES[task], tools, kwargs)
        for row, adapter, task in zip(rows, routing.adapters, tasks, strict=True)
    ]
    continues = settings.pop("return_full_text", True) and not inference.model.config.is_encoder_decoder
    texts = inference.generate(prompts, routing, settings)
    each = len(texts) // len(rows)
    return [
        generated(task, prompt, texts[place * each : (place + 1) * each], continues=continues)
        for place, (task, prompt) in enumerate(zip(tasks, prompts, strict=True))
    ]
