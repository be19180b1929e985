"""How the rows of a mixed batch are put together, so that one batched product serves every adapter in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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

    def spread(self, grouped: torch.Tensor, out: torch.Tensor) -> None:
        """Add ``grouped`` [groups, ..., n] to its rows of ``out`` [rows, ..., n], in place; of rows put together."""
        assert self.take is not None
        assert self.rows is not None
        assert self.give is not None
        grouped = grouped.reshape(self.take.shape[0], *out.shape[1:]).index_select(0, self.give)
        if self.rows.shape == self.row_slots.shape:
            out.add_(grouped)
        else:
            out.index_add_(0, self.rows, grouped)


def group_rows_by_slot(slots: Sequence[int], device: torch.device) -> RowGroups:
    """Put rows of these ``slots`` (one for each row, not all of them 0) into groups, on ``device``."""
    return put_into_groups(slots, groups_for(slots), device)


def groups_for(slots: Sequence[int]) -> tuple[int, ...]:
    """The slot of each group for rows of these ``slots``: as many groups as keep them about equally full."""
    counts = Counter(slot for slot in slots if slot)
    size = -(-counts.total() // len(counts))
    return tuple(slot for slot, count in counts.items() for _ in range(-(-count // size)))


def places_in(slots: Sequence[int], groups: Sequence[int]) -> int:
    """How many rows are computed when rows of these ``slots`` are put into these groups, which have them all."""
    return len(groups) * _size(Counter(slot for slot in slots if slot), Counter(groups))


def _size(counts: Mapping[int, int], groups: Mapping[int, int]) -> int:
    return max(-(-count // groups[slot]) for slot, count in counts.items())


def put_into_groups(slots: Sequence[int], groups: Sequence[int], device: torch.device) -> RowGroups:
    """Put rows of these ``slots`` into the groups whose slots are ``groups``, on ``device``.

    Each slot but 0 has at least one group; a group may stay without a row.
    """
    members: dict[int, list[int]] = {}
    for row, slot in enumerate(slots):
        if slot:
            members.setdefault(slot, []).append(row)
    size = _size({slot: len(rows) for slot, rows in members.items()}, Counter(groups))
    take: list[int] = []
    place: dict[int, int] = {}
    for slot in groups:
        waiting = members.get(slot, [])
        group, members[slot] = waiting[:size], waiting[size:]
        place |= {row: len(take) + offset for offset, row in enumerate(group)}
        take += group + (group or [0])[:1] * (size - len(group))

    def tensor(values: Sequence[int]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.long, device=device)

    if len(place) == len(slots) and take == list(range(len(slots))):  # a group without rows is filled up with row 0
        return RowGroups(tensor(groups), tensor(slots), None, None, None)
    adapted = sorted(place)
    return RowGroups(
        tensor(groups), tensor(slots), tensor(take), tensor(adapted), tensor([place[row] for row in adapted])
    )
