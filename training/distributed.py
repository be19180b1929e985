"""Several processes that train one adapter together, as ``accelerate launch`` or ``torchrun`` starts them.

Each reads the rows, loads the base and takes its share of each step's rows. The first one alone shows the bar, writes
the run's folder, measures, saves, checks and registers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from lorary.hub.errors import TrainingError
from lorary.training.recipe import Recipe

_Value = TypeVar("_Value")

PATIENCE = timedelta(hours=24)
"""How long the others wait while the first process measures or saves alone."""


@dataclass(frozen=True)
class Group:
    """The processes of a run: how many there are, and which one this is."""

    count: int = 1
    rank: int = 0

    @property
    def first(self) -> bool:
        """Is this the process that writes?"""
        return self.rank == 0

    def from_first(self, value: _Value | None) -> _Value:
        """The first process's ``value``, in each process."""
        values: list[Any] = [value]
        if self.count > 1:
            import torch.distributed as dist

            dist.broadcast_object_list(values, src=0)
        first: _Value = values[0]
        return first

    def gathered(self, values: list[_Value]) -> list[_Value]:
        """The ``values`` of all processes, in their order."""
        if self.count == 1:
            return values
        import torch.distributed as dist

        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, values)
        return [value for part in found for value in part]

    def any(self, flag: bool, device: Any) -> bool:
        """Is ``flag`` set in any of the processes? ``device`` is where they train."""
        if self.count == 1:
            return flag
        import torch
        import torch.distributed as dist

        value = torch.tensor(int(flag), device=device)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def wait(self) -> None:
        """Go on when each process has come here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


ALONE = Group()


def join(recipe: Recipe) -> Group:
    """Join the processes that were launched together; :data:`ALONE` where there is one.

    Raises:
        TrainingError: the recipe places the base itself, or the launcher asks for what can't be done.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    for name in ("DeepSpeed", "FSDP"):
        if _on(f"ACCELERATE_USE_{name.upper()}"):
            raise TrainingError(
                f"{name} isn't supported: the first process measures, saves and checks the adapter alone, and a base "
                "in shards answers only when all processes ask. Launch with examples/accelerate/ddp.yaml, where each "
                "process holds a whole base; where that is too large, use method: qlora, or device_map: auto in one "
                "process"
            )
    if count == 1:
        return ALONE
    if recipe.device_map is not None:
        raise TrainingError(
            f"device_map {recipe.device_map!r} spreads one base over all GPUs, and each of {count} processes has a "
            "base of its own; leave it out, or train in one process"
        )
    if recipe.training.seeds > 1 or recipe.training.folds:
        raise TrainingError("training.seeds and training.folds are trained in one process; leave them out")
    if recipe.device not in (None, "cpu", "cuda"):
        raise TrainingError(f"device {recipe.device!r} names one device for {count} processes; leave it out")
    from accelerate import PartialState

    on_cpu = recipe.device == "cpu" or _on("ACCELERATE_USE_CPU")
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)  # also makes "cuda" mean this process's GPU
    return Group(state.num_processes, state.process_index)


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
