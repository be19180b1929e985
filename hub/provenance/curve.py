"""How many points of a run's curve are kept: enough to draw it, few enough to carry along."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

MOST_POINTS = 200
"""Points of the loss that a version's provenance holds."""


def thinned(points: Sequence[T], most: int = MOST_POINTS) -> list[T]:
    """At most ``most`` of the points, evenly spaced, with the last."""
    every = -(-len(points) // most) or 1
    return [point for place, point in enumerate(points, start=1) if place % every == 0 or place == len(points)]
