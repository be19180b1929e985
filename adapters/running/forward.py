"""One pass for many rows: the body runs once for all of them, the heads once per adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch

from lorary.adapters.adapter import Adapter
from lorary.adapters.heads.task_heads import TaskHead, body_output
from lorary.adapters.layer.routing import Routing
from lorary.adapters.running.passes import BodyPass, run, run_body, take_rows


def forward_rows(
    body: Any,
    inputs: Mapping[str, torch.Tensor],
    routing: Routing,
    *,
    rows_first: bool = True,
    asked: Mapping[int, torch.Tensor] = MappingProxyType({}),
) -> list[torch.Tensor]:
    """Each row's logits through its own adapter's head, or its hidden states where its adapter has none.

    Args:
        body: the shared body.
        inputs: a padded batch, each tensor [rows, ...].
        routing: one adapter per row.
        rows_first: whether the body's layers keep the rows apart; where they don't, each adapter has a pass of its own.
        asked: rows of which only some tokens matter, and which ones; a head that looks at each token alone is then run
            for those only, which spares a vocabulary of logits for every other token.

    Returns:
        For each row a tensor without the batch dimension: [classes], [tokens, classes] or [tokens, hidden]; of a row in
        ``asked`` those tokens, where its head can tell them apart, else all.
    """
    if not routing.uniform and not rows_first:
        return _in_turn(body, inputs, routing, asked)
    groups = group_rows(routing.adapters)
    shared = {adapter: rows for adapter, rows in groups.items() if _reads_body_output(adapter)}
    results = _shared_pass(body, inputs, routing, shared, asked) if shared else {}
    for adapter, rows in groups.items():
        if adapter is not None and adapter.head is not None and adapter not in shared:
            results |= _own_pass(adapter.head, inputs, routing, rows)
    return [results[index] for index in range(len(routing.adapters))]


def _in_turn(
    body: Any, inputs: Mapping[str, torch.Tensor], routing: Routing, asked: Mapping[int, torch.Tensor]
) -> list[torch.Tensor]:
    """Each adapter's rows in passes of their own."""
    found: dict[int, torch.Tensor] = {}
    for rows in group_rows(routing.adapters).values():
        own = {place: asked[row] for place, row in enumerate(rows) if row in asked}
        made = forward_rows(body, take_rows(inputs, rows), routing.subset(rows), asked=own)
        found |= zip(rows, made, strict=True)
    return [found[index] for index in range(len(routing.adapters))]


def _shared_pass(
    body: Any,
    inputs: Mapping[str, torch.Tensor],
    routing: Routing,
    groups: Mapping[Adapter | None, Sequence[int]],
    asked: Mapping[int, torch.Tensor],
) -> dict[int, torch.Tensor]:
    """One pass of the body for the rows of these adapters, and each one's head over its rows of it."""
    chosen = [index for rows in groups.values() for index in rows]
    place = {index: position for position, index in enumerate(chosen)}
    decoding = [place[index] for index in chosen if _reads_decoder(routing.adapters[index])]
    made = run_body(body, take_rows(inputs, chosen), routing.subset(chosen), decoding)
    results: dict[int, torch.Tensor] = {}
    for adapter, rows in groups.items():
        places = [place[index] for index in rows]
        head = adapter.head if adapter is not None else None
        if head is None:
            logits = list(made.hidden(places))
        elif head.tokenwise and all(row in asked for row in rows):
            logits = _read_tokens(head, made, places, [asked[row] for row in rows])
        else:
            logits = _read(head, made, places, take_rows(inputs, rows))
        results |= zip(rows, logits, strict=True)
    return results


def _own_pass(
    head: TaskHead, inputs: Mapping[str, torch.Tensor], routing: Routing, rows: Sequence[int]
) -> dict[int, torch.Tensor]:
    """The whole task model for one adapter's rows."""
    results: dict[int, torch.Tensor] = {}
    for alike in _alike(head, inputs, rows):
        logits = logits_of(run(head.model, take_rows(inputs, alike), routing.subset(alike)))
        results |= zip(alike, logits, strict=True)
    return results


def group_rows(adapters: Sequence[Adapter | None]) -> dict[Adapter | None, list[int]]:
    """The rows of each adapter, in order of first appearance."""
    groups: dict[Adapter | None, list[int]] = {}
    for index, adapter in enumerate(adapters):
        groups.setdefault(adapter, []).append(index)
    return groups


def _reads_body_output(adapter: Adapter | None) -> bool:
    return adapter is None or adapter.head is None or adapter.head.reads_body_output


def _reads_decoder(adapter: Adapter | None) -> bool:
    return adapter is not None and adapter.head is not None and adapter.head.reads_decoder


def _read(
    head: TaskHead, made: BodyPass, rows: Sequence[int], inputs: Mapping[str, torch.Tensor]
) -> list[torch.Tensor]:
    """What a head makes of its rows of a pass; ``inputs`` are those rows' own."""
    results: dict[int, torch.Tensor] = {}
    for alike in _alike(head, inputs, range(len(rows))):
        with body_output(made.of([rows[index] for index in alike], inputs["input_ids"].device)):
            # A head that picks one token per row (the last, say) finds it in the token ids and the mask.
            results |= zip(alike, logits_of(head.model(**take_rows(inputs, alike))), strict=True)
    return [results[index] for index in range(len(rows))]


def _read_tokens(
    head: TaskHead, made: BodyPass, rows: Sequence[int], asked: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """What a head that looks at each token alone makes of those ``asked`` for, [tokens asked for, ...] of each row."""
    from transformers.modeling_outputs import BaseModelOutput

    chosen = [states[tokens] for states, tokens in zip(made.hidden(rows), asked, strict=True)]
    device = next(head.model.parameters()).device
    with body_output(BaseModelOutput(last_hidden_state=torch.cat(chosen).unsqueeze(0).to(device))):
        logits = logits_of(head.model(input_ids=torch.cat(list(asked)).unsqueeze(0)))[0]
    return list(logits.split([len(tokens) for tokens in asked]))


def _alike(head: TaskHead, inputs: Mapping[str, torch.Tensor], rows: Sequence[int]) -> list[list[int]]:
    """The rows in parts that the head takes in one batch.

    The classifiers of encoder-decoders read the last end-of-sequence token and demand as many of them in each row, of
    which a pair of texts has one more than a text.
    """
    if not hasattr(head.model, "classification_head"):
        return [list(rows)]
    parts: dict[int, list[int]] = {}
    counts = (inputs["input_ids"] == head.model.config.eos_token_id).sum(dim=1).tolist()
    for row in rows:
        parts.setdefault(counts[row], []).append(row)
    return list(parts.values())


def logits_of(output: Any) -> torch.Tensor:
    """A model's logits, or its hidden states where it has no head.

    Those of extractive question answering, a start and an end, as [rows, tokens, 2].
    """
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], dim=-1)
    logits: torch.Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return logits
