"""The held-out rows that a model is most wrong about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lorary.training.precision import answering
from lorary.training.report.content import WorstRow
from lorary.training.tasks.base import Task
from lorary.training.tasks.rows.encoded import Encoded

LONGEST_TEXT = 600  # characters of a row that are shown
_RANKED = 256


def worst_rows(
    model: Any, task: Task, rows: Encoded, outcomes: Sequence[Any], tokenizer: Any, most: int
) -> tuple[tuple[WorstRow, ...], int]:
    """The rows with the highest loss, highest first, and how many rows were looked at.

    Each row's loss is the model's own, on that row alone. Where the outcomes don't tell it, wrong answers are looked at
    first, up to 256 rows in all: a long test set isn't run a second time for the sake of twenty rows.

    Args:
        outcomes: the model's, in the rows' order.
        most: how many rows are wanted; 0 looks at none.
    """
    if most == 0:
        return (), 0
    answers = task.answers(rows, outcomes)
    if known := task.losses(outcomes, rows.golds):
        losses = dict(enumerate(known))
    else:
        chosen = sorted(range(len(answers)), key=lambda index: answers[index].right)[:_RANKED]
        losses = {index: _loss(model, task.collator(tokenizer), rows.of(index)) for index in chosen}
    ranked = sorted((index for index in losses if math.isfinite(losses[index])), key=lambda index: -losses[index])
    return tuple(
        WorstRow(
            place=rows.examples[index].place,
            given=_short(answers[index].given),
            expected=_short(answers[index].expected),
            found=_short(answers[index].found),
            loss=round(losses[index], 6),
            right=answers[index].right,
        )
        for index in ranked[:most]
    ), len(losses)


def _loss(model: Any, collate: Any, features: Sequence[Any]) -> float:
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate([dict(feature) for feature in features]).items()}
    with answering(model):
        return float(model(**batch).loss)


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ..."
