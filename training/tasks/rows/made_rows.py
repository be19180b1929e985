"""Features that are made when they are asked for, so that a corpus isn't in memory as millions of small objects."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self, overload

from lorary.training.tasks.rows.token_rows import TokenRows


class MadeRows(Sequence[dict[str, Any]]):
    """A feature for each of the ``places`` of token rows; all of them, in order, unless given."""

    def __init__(self, rows: TokenRows, places: Sequence[int] | None = None) -> None:
        self.rows = rows
        self.places: Sequence[int] = range(len(rows)) if places is None else places

    @abstractmethod
    def make(self, place: int) -> dict[str, Any]:
        """The feature of a token row."""

    @abstractmethod
    def pick(self, places: Sequence[int]) -> Self:
        """Features of the rows at these places of this sequence."""

    def __len__(self) -> int:
        return len(self.places)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[dict[str, Any], ...]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | tuple[dict[str, Any], ...]:
        if isinstance(index, slice):
            return tuple(self.make(place) for place in self.places[index])
        return self.make(self.places[index])


def picked(features: Sequence[dict[str, Any]], places: Sequence[int]) -> Sequence[dict[str, Any]]:
    """The features at these places, made when they are asked for where the others are."""
    return features.pick(places) if isinstance(features, MadeRows) else tuple(features[place] for place in places)
