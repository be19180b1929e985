"""A call's vectors in blocks of one slot each, as kernels take them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Blocks:
    """Block i is ``rows[start[i]]`` to ``rows[start[i + 1]]``, at most so many of them, all of the slot ``slot[i]``.

    ``row_slots`` [rows of the call]: each one's slot. The vectors of slot 0 are in no block. All on the CPU.
    """

    row_slots: torch.Tensor
    rows: torch.Tensor
    start: torch.Tensor
    slot: torch.Tensor


def blocks_of(slots: Sequence[int], each: int, most: int) -> Blocks:
    """Blocks of ``most`` vectors at most, for rows of these ``slots`` with ``each`` vectors, one after the other."""
    row_slots = torch.tensor(slots, dtype=torch.long, device="cpu")
    ordered, rows = row_slots.repeat_interleave(each).sort(stable=True)
    bare = int((ordered == 0).sum())
    ordered, rows = ordered[bare:], rows[bare:]
    place = torch.arange(len(ordered), device="cpu")
    start = place[(place - torch.searchsorted(ordered, ordered)) % most == 0]
    slot = ordered[start]
    start = torch.cat([start, torch.tensor([len(ordered)], device="cpu")])
    return Blocks(row_slots, rows, start, slot)
