"""Several rows in one sequence, each blind to the others, so that no time is spent on padding.

A row's tokens count their positions from 0, and transformers' models tell by that where a row begins: its attention
stays inside it. Not all families do so (OPT, Bloom, Falcon, MPT and recurrent ones let rows see each other), and no
field of a config says which, so :func:`keeps_rows_apart` tries it on the model itself before anything is packed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from lorary.training.fitting.losses import IGNORED
from lorary.training.precision import answering, base_dtype

_TRIED = 16  # tokens of a row that a model is tried with


@dataclass
class PackingCollator:
    """Makes a batch of ``input_ids`` and ``labels``, [sequences, tokens] each, with ``position_ids`` or a mask.

    The rows of a batch share sequences where that saves padding, and no sequence gets longer than the batch's longest
    row: neither a step's rows nor the memory that it may need change. A feature with ``seq_lengths`` is several rows
    already. Where nothing can be shared, the rows are padded as usual.

    Args:
        pad_token_id: fills the rest of a sequence.
        flat: one sequence for the whole batch, which FlashAttention's kernels ask for.

    ``tokens``, ``positions`` and ``padded_positions`` count what was made: the rows' own tokens, those with what
    fills the sequences, and those that padding each row would have taken.
    """

    pad_token_id: int
    flat: bool = False
    tokens: int = field(default=0, init=False)
    positions: int = field(default=0, init=False)
    padded_positions: int = field(default=0, init=False)

    def __call__(self, features: Sequence[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """The batch; its labels at each row's first position are left out of the loss, as nothing predicts them."""
        lengths = [len(feature["input_ids"]) for feature in features]
        longest = sum(lengths) if self.flat else max(lengths)
        bins = first_fit(lengths, longest)
        self.tokens += sum(lengths)
        self.positions += len(bins) * longest
        self.padded_positions += len(lengths) * max(lengths)
        shape = (len(bins), longest)
        ids, labels = torch.full(shape, self.pad_token_id), torch.full(shape, IGNORED)
        # Positions of 0 make each filling token a row of its own, which nothing attends to.
        positions, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
        shared = False
        for row, places in enumerate(bins):
            start = 0
            for place in places:
                feature, stop = features[place], start + lengths[place]
                parts = feature.get("seq_lengths") or [lengths[place]]
                ids[row, start:stop] = torch.tensor(feature["input_ids"])
                labels[row, start:stop] = torch.tensor(feature["labels"])
                positions[row, start:stop] = torch.cat([torch.arange(part) for part in parts])
                mask[row, start:stop] = 1
                shared |= start > 0 or len(parts) > 1
                start = stop
        labels[positions == 0] = IGNORED
        # A mask beside the positions would make the models ignore where rows begin.
        return {
            "input_ids": ids,
            "labels": labels,
            **({"position_ids": positions} if shared else {"attention_mask": mask}),
        }

    def figures(self) -> dict[str, int]:
        """The counts, for the provenance."""
        return {"tokens": self.tokens, "positions": self.positions, "padded_positions": self.padded_positions}


def first_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Places of rows by sequence, each row in the first one with room for it, the longest rows first (first-fit
    decreasing). A row that is longer than ``capacity`` has a sequence of its own."""
    bins: list[list[int]] = []
    room: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        fitting = next((index for index, left in enumerate(room) if lengths[place] <= left), None)
        if fitting is None:
            bins.append([])
            room.append(capacity)
            fitting = len(bins) - 1
        bins[fitting].append(place)
        room[fitting] -= lengths[place]
    return bins


def keeps_rows_apart(model: Any, rows: Sequence[Sequence[int]]) -> bool:
    """Does ``model`` give a row that follows another in one sequence what it gives that row alone?

    Args:
        model: a causal language model, with or without an adapter; its mode is left as it was.
        rows: token ids of one row or more, of at least two tokens.
    """
    first, second = list(rows[0])[:_TRIED], list(rows[-1])[:_TRIED]
    # Another row of the same length before it: the same arithmetic, so that any difference is a leak.
    others = ([*first[1:], first[0]], [second[-1], *first[1:]])
    other = next((row for row in others if row != first), None)
    if other is None:
        return False
    try:
        with answering(model):
            alone = _logits(model, [second])
            packed, repacked = _logits(model, [first, second]), _logits(model, [other, second])
    except TypeError:
        return False  # its forward knows no positions
    scale = alone.abs().max().clamp(min=1e-6)
    tolerance = 1e-3 if base_dtype(model) == torch.float32 else 0.05
    return all(bool((packed - reference).abs().max() <= tolerance * scale) for reference in (repacked, alone))


def _logits(model: Any, rows: Sequence[Sequence[int]]) -> torch.Tensor:
    """The logits of the last of ``rows`` in one sequence, in float32."""
    device = next(model.parameters()).device
    ids = torch.tensor([[token for row in rows for token in row]], device=device)
    positions = torch.tensor([[place for row in rows for place in range(len(row))]], device=device)
    logits: torch.Tensor = model(input_ids=ids, position_ids=positions, use_cache=False).logits
    return logits[0, -len(rows[-1]) :].float()
