"""Running a model over encoded rows, a batch at a time, and keeping only what the metrics need.

Evaluating through the trainer would pile up all logits until memory is out; a language model's row is 100 MB.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.running.forward import logits_of
from lorary.adapters.through_peft.view import PeftView, UnpaddedPasses
from lorary.hub.errors import TrainingError
from lorary.training.fitting.losses import IGNORED
from lorary.training.precision import answering

if TYPE_CHECKING:
    from lorary.training.tasks.base import Task
    from lorary.training.tasks.rows.encoded import Encoded, Feature


# What a batch of questions says of its answers: a model that is given them computes a loss too.
_SPAN_TARGETS = ("start_positions", "end_positions")


def outcomes(model: Any, task: Task, encoded: Encoded, tokenizer: Any, batch_size: int) -> list[Any]:
    """What the model makes of each row, in the rows' order. Raises as :func:`logits_by_row`."""
    found: dict[int, Any] = {}
    for place, (logits,) in logits_by_row(model, task, encoded, tokenizer, batch_size):
        found[place] = task.outcome(logits, encoded.features[place])
    return [found[index] for index in range(len(encoded.examples))]


def logits_by_row(
    model: Any, task: Task, encoded: Encoded, tokenizer: Any, batch_size: int
) -> Iterator[tuple[int, list[torch.Tensor]]]:
    """Each row's place with the logits of its features, longest rows first.

    A row's features are always in one batch, as ``predict`` has them: on an 8-bit base logits depend on batch mates.

    Raises:
        TrainingError: one of them isn't a number.
    """
    collate = task.collator(tokenizer)
    sizes = Counter(encoded.owners) if encoded.owners is not None else None
    # Rows of like length together: less padding. The order of equals is that of the rows.
    order = sorted(
        range(len(encoded.examples)), key=lambda row: -max(len(feature["input_ids"]) for feature in encoded.of(row))
    )
    while order:
        count = 1
        while count < len(order) and sum(sizes[row] if sizes else 1 for row in order[: count + 1]) <= batch_size:
            count += 1
        chosen, order = order[:count], order[count:]
        features = [encoded.of(row) for row in chosen]
        made = iter(row_logits(model, collate, [feature for own in features for feature in own]))
        for row, own in zip(chosen, features, strict=True):
            logits = [next(made) for _ in own]
            if any(bool(one.isnan().any()) for one in logits):
                raise TrainingError(
                    f"what the model makes of {encoded.examples[row].place} isn't a number; its weights are damaged, "
                    "or too large for dtype: float16"
                )
            yield row, logits


def row_logits(model: Any, collate: Any, features: list[Feature]) -> list[torch.Tensor]:
    """The logits of one batch, row by row, without padding."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate([dict(feature) for feature in features]).items()}
    labels = batch.pop("labels", None)
    for name in _SPAN_TARGETS:
        batch.pop(name, None)
    with answering(model):
        logits = logits_of(_passes(model)(**batch))
    if logits.dim() == 2:
        return list(logits)
    # A decoder of its own answers for the target's tokens, not for those of the text that the encoder reads.
    real = batch["attention_mask"].bool() if "decoder_input_ids" not in batch else labels != IGNORED
    # The last layers of a base that is spread over devices answer on their own one.
    return [row[mask] for row, mask in zip(logits, real.to(logits.device), strict=True)]


def _passes(model: Any) -> Any:
    """The model as the loader runs it: without padding, and without what virtual tokens give, where it has them."""
    if not hasattr(model, "active_peft_config"):
        return model
    view = PeftView(model)
    return UnpaddedPasses(model, view.rows_alone) if view.rows_apart else model


def token_logits(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    """The logits of bare token rows, each run alone (what golden logits are made of), in float32 on the CPU."""
    found = []
    for row in rows:
        ids = torch.tensor([row])
        features = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
        found += [logits.float().cpu() for logits in row_logits(model, lambda batch: batch[0], features)]
    return found
