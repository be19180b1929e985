"""How the rows of a mixed batch are put together, so that one batched product serves every adapter in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowGroups:
    """The rows of a batch in groups of one size, each of one slot; rows of slot 0, the bare backbone, are in none.

    A slot with more rows than a group has several groups, and its last one may be filled up with rows whose results
    nobody reads: at most about twice as many rows are computed as there are.

    ``slots`` [groups]: each group's slot. ``row_slots`` [rows]: each row's. ``take`` [groups * size]: the row that
    stands at each place. ``rows`` [adapted rows]: which rows have an adapter. ``give`` [adapted rows]: where each one's
    result is found. The last three are None where the groups are the rows as they stand.
    """

    slots: torch.Tensor
    row_slots: torch.Tensor
    take: torch.Tensor | None
    rows: torch.Tensor | None
    give: torch.Tensor | None

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [rows, ..., n] to [groups, rows of a group and what follows, n]."""
        if self.take is not None:
            x = x.index_select(0, self.take)
        return x.reshape(self.slots.shape[0], -1, x.shape[-1])

    def spread(self, grouped: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Add ``grouped`` [groups, ..., n] to its rows of ``out`` [rows, ..., n], in place."""
        if self.take is None or self.rows is None or self.give is None:
            return out.add_(grouped.reshape(out.shape))
        grouped = grouped.reshape(self.take.shape[0], *out.shape[1:]).index_select(0, self.give)
        if self.rows.shape == self.row_slots.shape:
            return out.add_(grouped)
        return out.index_add_(0, self.rows, grouped)


def group_rows_by_slot(slots: Sequence[int], device: torch.device) -> RowGroups:
    """Put rows of these ``slots`` (one for each row, not all of them 0) into groups, on ``device``."""
    members: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot:
            members.setdefault(slot, []).append(row)
    size = -(-sum(map(len, members.values())) // len(members))
    group_slots: list[int] = []
    take: list[int] = []
    place: dict[int, int] = {}
    for slot, rows in members.items():
        for start in range(0, len(rows), size):
            group = rows[start : start + size]
            place |= {row: len(take) + offset for offset, row in enumerate(group)}
            take += group + group[:1] * (size - len(group))
            group_slots.append(slot)

    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    if take == list(range(len(slots))):
        return RowGroups(tensor(group_slots), tensor(slots), None, None, None)
    adapted = sorted(place)
    return RowGroups(
        tensor(group_slots), tensor(slots), tensor(take), tensor(adapted), tensor([place[row] for row in adapted])
    )
