"""Running a model over encoded rows, a batch at a time, and keeping only what the metrics need.

Evaluating through the trainer would pile up all logits until memory is out; a language model's row is 100 MB.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from lorary.hub.errors import TrainingError
from lorary.training.precision import precision

if TYPE_CHECKING:
    from lorary.training.tasks.base import Encoded, Feature, Task


IGNORED = -100
"""The label of a token that nothing is learned from, as torch's ``cross_entropy`` has it."""


def outcomes(model: Any, task: Task, encoded: Encoded, tokenizer: Any, batch_size: int) -> list[Any]:
    """What the model makes of each row, in the rows' order.

    Raises:
        TrainingError: it isn't a number.
    """
    collate = task.collator(tokenizer)
    # Rows of like length together: less padding. The order of equals is that of the rows.
    order = sorted(range(len(encoded.features)), key=lambda index: -len(encoded.features[index]["input_ids"]))
    found: dict[int, Any] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        for place, logits in zip(
            places, row_logits(model, collate, [encoded.features[i] for i in places]), strict=True
        ):
            if bool(logits.isnan().any()):
                raise TrainingError(
                    f"what the model makes of {encoded.examples[place].place} isn't a number; its weights are damaged, "
                    "or too large for dtype: float16"
                )
            found[place] = task.outcome(logits, encoded.features[place])
    return [found[index] for index in range(len(order))]


def row_logits(model: Any, collate: Any, features: list[Feature]) -> list[torch.Tensor]:
    """The logits of one batch, row by row, without padding."""
    device = next(model.parameters()).device
    batch = {name: tensor.to(device) for name, tensor in collate([dict(feature) for feature in features]).items()}
    labels = batch.pop("labels", None)
    training = model.training
    model.eval()
    with torch.no_grad(), precision(model):
        logits = model(**batch).logits
    model.train(training)
    if logits.dim() == 2:
        return list(logits)
    # A decoder of its own answers for the target's tokens, not for those of the text that the encoder reads.
    real = batch["attention_mask"].bool() if "decoder_input_ids" not in batch else labels != IGNORED
    return [row[mask] for row, mask in zip(logits, real, strict=True)]


def token_logits(model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
    """The logits of bare token rows, each run alone (what golden logits are made of), in float32 on the CPU."""
    found = []
    for row in rows:
        ids = torch.tensor([row])
        features = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)}]
        found += [logits.float().cpu() for logits in row_logits(model, lambda batch: batch[0], features)]
    return found
