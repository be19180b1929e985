"""How much of a run would be padding, and the hint that grouping rows by length spares it."""

from __future__ import annotations

import random
from collections.abc import Sequence

from lorary.training.recipe import Recipe

_MUCH = 1 / 3


def padded_tokens(lengths: Sequence[int], batch_size: int, seed: int) -> int:
    """The tokens of an epoch in batches drawn at random, each padded to its longest row."""
    order = list(lengths)
    random.Random(seed).shuffle(order)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return sum(max(batch) * len(batch) for batch in batches)


def padding_hint(lengths: Sequence[int], recipe: Recipe) -> str | None:
    """What to say where more than a third of the tokens would be padding; None elsewhere, or where nothing is padded.

    Rows aren't grouped unasked: which rows share a batch is part of the result.
    """
    training = recipe.training
    if training.group_by_length or (recipe.task == "text-generation" and training.packing is not False):
        return None
    share = 1 - sum(lengths) / padded_tokens(lengths, training.batch_size, training.seed)
    if share <= _MUCH:
        return None
    return f"{share:.0%} of what is computed is padding; training.group_by_length: true spares most of it"
