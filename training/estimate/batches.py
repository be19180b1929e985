"""Which rows make a run's largest batch, and how much of a run it is: batches are as long as the longest of their rows.

A row may bring several texts of lengths of their own (:meth:`lorary.training.tasks.base.Task.widths`), each of which is
padded to the longest of its kind.
"""

from __future__ import annotations

from collections.abc import Sequence

from lorary.training.fitting.padding import padded_tokens

Widths = Sequence[tuple[int, ...]]


def largest_batch(widths: Widths, size: int) -> list[int]:
    """The places of the rows that make the largest batch: the longest of each kind, then those that are the longest."""
    longest = sorted(range(len(widths)), key=lambda place: -sum(widths[place]))
    most = {max(longest, key=lambda place: widths[place][kind]) for kind in range(len(widths[0]))}
    if len(most) <= size:
        longest = list(dict.fromkeys([*sorted(most), *longest]))
    return longest[:size]


def batches_of_an_epoch(widths: Widths, size: int, seed: int) -> float:
    """How many of the largest batches hold as much as an epoch's, padding included."""
    padded = sum(padded_tokens(kind, size, seed) for kind in zip(*widths, strict=True))
    rows = [widths[place] for place in largest_batch(widths, size)]
    return padded / (len(rows) * sum(map(max, zip(*rows, strict=True))))
