"""What earlier runs say: how fast a device is, and how far off their predictions were."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lorary.hub.finding.search import Filter
from lorary.hub.registry import Registry
from lorary.hub.values import Version
from lorary.training.provenance import device_name
from lorary.training.recipe import Recipe

_NEWEST = 1_000  # versions


@dataclass(frozen=True)
class Past:
    """One run: what was predicted for it and what it took."""

    device: str
    quantization: str
    predicted: int
    measured: int
    flops: int
    seconds: float

    @property
    def error(self) -> float:
        """How far the predicted peak was off, as a share of the measured one; above 0: predicted too much."""
        return self.predicted / self.measured - 1


class PastRuns:
    """The runs of a catalogue's versions that carry a prediction."""

    def __init__(self, versions: Iterable[Version] = ()) -> None:
        found = (_read(version) for version in versions)
        self.runs = [run for run in found if run is not None]

    @classmethod
    def of(cls, registry: Registry) -> PastRuns:
        """Those of a registry's newest versions: reading a hundred thousand would take longer than all the rest."""
        newest = registry.search(Filter(), sort="created", limit=_NEWEST)
        return cls(version for version in newest.each() if isinstance(version, Version))

    def rate(self, recipe: Recipe, device: torch.device) -> float | None:
        """The median of operations a second, over the runs on the same device with the same quantization."""
        rates = [run.flops / run.seconds for run in self._alike(recipe, device)]
        return statistics.median(rates) if rates else None

    def count(self, recipe: Recipe, device: torch.device) -> int:
        """How many runs :meth:`rate` rests on."""
        return len(self._alike(recipe, device))

    def _alike(self, recipe: Recipe, device: torch.device) -> list[Past]:
        wanted = (device_name(device), recipe.base_quantization)
        return [run for run in self.runs if (run.device, run.quantization) == wanted]

    def errors(self) -> list[float]:
        """How far off each prediction of the peak was, smallest distance first."""
        return sorted((run.error for run in self.runs), key=abs)


def _read(version: Version) -> Past | None:
    """A manifest may come from anybody: whatever isn't as a run writes it counts as no prediction."""
    told: Mapping[str, Any] = version.manifest.provenance if version.manifest else {}
    try:
        estimate, environment = told["estimate"], told["environment"]
        past = Past(
            device=str(environment["device"]),
            quantization=version.quantization,
            predicted=int(estimate["peak_memory_bytes"]),
            measured=int(told["peak_memory_bytes"]),
            # Early stopping may have ended it before all of its steps.
            flops=int(estimate["flops"] * told["steps"] / estimate["steps"]),
            seconds=float(told["seconds"]),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    positive = (past.predicted, past.measured, past.flops, past.seconds)
    return past if all(value > 0 for value in positive) else None
