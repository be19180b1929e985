"""When memory runs out: half the batch and twice the accumulation, so that a step is over the same rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import torch

from lorary.adapters.base.memory import free_memory, out_of_memory
from lorary.training.checkpoints import write_json
from lorary.training.run_facts import a_count, read_part

if TYPE_CHECKING:
    from lorary.training.fitting.job import RunSettings

_FILE = "batching.json"
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Batching:
    """How the rows of a step are cut up: ``size`` rows at a time, ``accumulation`` times."""

    size: int
    accumulation: int

    @property
    def rows(self) -> int:
        """How many rows a step is made of."""
        return self.size * self.accumulation

    def smaller(self, least: int) -> Batching | None:
        """At most half as many rows at a time, though no fewer than ``least``; None where there are no more already.

        A step is made of the same rows, unless no such size divides it: then of as few more as ``least`` allows.
        """
        if self.size <= least:
            return None
        sizes = range(max(self.size // 2, least), least - 1, -1)
        size = next((size for size in sizes if self.rows % size == 0), least)
        return Batching(size, -(-self.rows // size))

    @classmethod
    def of(cls, training: RunSettings, folder: Path) -> Self:
        """That of the settings, or what an earlier process came to in the run's ``folder``.

        Raises:
            TrainingError: what it wrote down isn't what it was.
        """
        if (folder / _FILE).is_file():
            kept = read_part(folder / _FILE, {"size": a_count, "accumulation": a_count})
            return cls(kept["size"], kept["accumulation"])
        return cls(training.batch_size, training.gradient_accumulation)

    def keep(self, folder: Path) -> None:
        """Write it down for a process that goes on with the run."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _FILE, asdict(self))


def in_smaller_batches(work: Callable[[int], _Result], size: int, note: Callable[[str], None]) -> _Result:
    """``work(size)``, where its result doesn't depend on the size; with half of it for as long as memory runs out."""
    while True:
        try:
            return work(size)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or size == 1:
                raise
        free_memory()
        size = max(1, size // 2)
        note(f"memory ran out: the held-out rows are measured {size} at a time")


def trained_parameters(model: Any) -> dict[str, torch.Tensor]:
    """A copy of what is trained, on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters() if value.requires_grad}


def put_back(model: Any, parameters: dict[str, torch.Tensor]) -> None:
    """Give the trained parameters the values of a copy."""
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name in parameters:
                value.copy_(parameters[name])
