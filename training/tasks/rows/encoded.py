"""Rows as token ids."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from lorary.training.data import Example
from lorary.training.tasks.rows.lengths import Length
from lorary.training.tasks.rows.made_rows import picked

Feature = dict[str, Any]


@dataclass(frozen=True)
class Encoded:
    """Rows as token ids: ``features`` are what the collator takes, ``golds`` what the metrics compare with.

    ``lengths`` says of each row what was cut; a task that never cuts a row leaves it empty.
    Features that aren't a tuple are made when they are asked for: a corpus is too long for lists.
    A row has one feature, unless ``owners`` says for each feature which row it is of, in the rows' order.
    """

    examples: tuple[Example, ...]
    features: Sequence[Feature]
    golds: tuple[Any, ...]
    lengths: tuple[Length, ...] = ()
    owners: tuple[int, ...] | None = None

    def head(self, count: int) -> Encoded:
        """The first ``count`` rows."""
        return self.pick(range(min(count, len(self.examples))))

    def pick(self, places: Sequence[int]) -> Encoded:
        """The rows at these places, in this order."""
        return Encoded(
            tuple(self.examples[place] for place in places),
            picked(self.features, places) if self.owners is None else tuple(chain(*map(self.of, places))),
            tuple(self.golds[place] for place in places),
            tuple(self.lengths[place] for place in places) if self.lengths else (),
            None if self.owners is None else tuple(row for row, place in enumerate(places) for _ in self.of(place)),
        )

    def of(self, row: int) -> list[Feature]:
        """The features of a row."""
        if self.owners is None:
            return [self.features[row]]
        return list(self.features[bisect_left(self.owners, row) : bisect_right(self.owners, row)])
