"""One pass for many rows: the body runs once for all of them, the heads once per adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.heads import body_output
from lorary.adapters.routing import Routing, routed


def forward_rows(
    body: Any, inputs: Mapping[str, torch.Tensor], routing: Routing, *, rows_first: bool = True
) -> list[torch.Tensor]:
    """Each row's logits through its own adapter's head, or its hidden states where its adapter has none.

    Args:
        body: the shared body.
        inputs: a padded batch, each tensor [rows, ...].
        routing: one adapter per row.
        rows_first: whether the body's layers keep the rows apart; where they don't, each adapter has a pass of its own.

    Returns:
        For each row a tensor without the batch dimension: [classes], [tokens, classes] or [tokens, hidden].
    """
    groups = group_rows(routing.adapters)
    if not routing.uniform and not rows_first:
        found: dict[int, torch.Tensor] = {}
        for rows in groups.values():
            found |= zip(rows, forward_rows(body, _rows(inputs, rows), routing.subset(rows)), strict=True)
        return [found[index] for index in range(len(routing.adapters))]
    shared = [index for adapter, rows in groups.items() for index in rows if _reads_body_output(adapter)]
    results: dict[int, torch.Tensor] = {}
    if shared:
        output = _run(body, _rows(inputs, shared), routing.subset(shared))
        place = {index: position for position, index in enumerate(shared)}
        for adapter, rows in groups.items():
            if _reads_body_output(adapter):
                own = _slice(output, [place[index] for index in rows], inputs["input_ids"].device)
                results |= zip(rows, _head_logits(adapter, own, _rows(inputs, rows)), strict=True)
    for adapter, rows in groups.items():
        if adapter is not None and adapter.head is not None and not adapter.head.reads_body_output:
            logits = _logits(_run(adapter.head.model, _rows(inputs, rows), routing.subset(rows)))
            results |= zip(rows, logits, strict=True)
    return [results[index] for index in range(len(routing.adapters))]


def _reads_body_output(adapter: Adapter | None) -> bool:
    return adapter is None or adapter.head is None or adapter.head.reads_body_output


def _head_logits(adapter: Adapter | None, output: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    if adapter is None or adapter.head is None:
        return output[0]
    with body_output(output):
        # A head that picks one token per row (the last, say) finds it in the token ids and the mask.
        return _logits(adapter.head.model(**inputs))


def _run(module: Any, inputs: Mapping[str, torch.Tensor], routing: Routing) -> Any:
    with torch.no_grad(), routed(routing):
        return module(**inputs)


def _logits(output: Any) -> torch.Tensor:
    """A head's logits; those of extractive question answering, a start and an end, as [rows, tokens, 2]."""
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: torch.Tensor = output.logits
    return logits


def group_rows(adapters: Sequence[Adapter | None]) -> dict[Adapter | None, list[int]]:
    """The rows of each adapter, in order of first appearance."""
    groups: dict[Adapter | None, list[int]] = {}
    for index, adapter in enumerate(adapters):
        groups.setdefault(adapter, []).append(index)
    return groups


def _rows(inputs: Mapping[str, torch.Tensor], rows: Sequence[int]) -> dict[str, torch.Tensor]:
    return {name: tensor[list(rows)] for name, tensor in inputs.items()}


def _slice(output: Any, rows: Sequence[int], device: torch.device) -> Any:
    """The given rows of a model output, where the heads are; caches, which heads don't read, are left out.

    The last layers of a model that is spread over devices answer on their own one.
    """
    picked = {
        name: value[list(rows)].to(device)
        for name, value in output.items()
        if isinstance(value, torch.Tensor) and value.ndim > 1
    }
    return type(output)(**picked)
