"""Several processes that train one adapter together, as ``accelerate launch`` or ``torchrun`` starts them.

Each reads the rows, loads the base and takes its share of each step's rows. The first one alone shows the bar, writes
the run's folder, measures, saves, checks and registers.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from lorary.hub.errors import TrainingError
from lorary.training.recipe import Recipe
from lorary.training.recipe.methods import LORA_METHODS

_Value = TypeVar("_Value")
_FSDP = "ACCELERATE_USE_FSDP"

PATIENCE = timedelta(hours=24)
"""How long the others wait while the first process measures or saves alone."""


@dataclass(frozen=True)
class Group:
    """The processes of a run: how many there are, and which one this is.

    ``device`` is what this one trains on, where there are several; ``sharded``: each keeps a part of the base
    (:mod:`lorary.training.sharding`). ``place`` is its number among those of its machine.
    """

    count: int = 1
    rank: int = 0
    place: int = 0
    device: str = "cpu"
    sharded: bool = False

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

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """Run the block in one process of a machine after the other: its memory has room for what one of them holds."""
        for place in range(self.count):
            if place == self.place:
                yield
            self.wait()

    def until_first_ends(self) -> None:
        """Wait for the end of the first process, by which the connection to it breaks.

        A launcher ends all processes as soon as one has ended, and the first has the last words to say.
        """
        with suppress(RuntimeError):
            self.wait()

    def wait(self) -> None:
        """Go on when each process has come here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()


ALONE = Group()


def lost_another(error: BaseException) -> bool:
    """Did a step fail because another process isn't there any more?"""
    import torch.distributed as dist

    # Gloo has no class of its own for it.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))


def join(recipe: Recipe) -> Group:
    """Join the processes that were launched together; :data:`ALONE` where there is one.

    Raises:
        TrainingError: the recipe places the base itself, or the launcher asks for what can't be done.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if _on("ACCELERATE_USE_DEEPSPEED"):
        raise TrainingError(
            "DeepSpeed isn't supported; examples/accelerate/fsdp.yaml cuts up the base, and in ddp.yaml there each "
            "process holds a whole one"
        )
    # Not left to accelerate: it would cut up the adapter too, which every process has to hold whole.
    sharded = _on(_FSDP)
    os.environ.pop(_FSDP, None)
    if count == 1:
        return ALONE
    if sharded:
        _check_sharded(recipe)
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

    from lorary.adapters.base.quantization import quieten

    quieten()
    on_cpu = recipe.device == "cpu" or _on("ACCELERATE_USE_CPU")
    state = PartialState(cpu=on_cpu, timeout=PATIENCE)  # also makes "cuda" mean this process's GPU
    return Group(state.num_processes, state.process_index, state.local_process_index, str(state.device), sharded)


def _check_sharded(recipe: Recipe) -> None:
    """Refuse what needs a layer's whole weight at other times than the layer itself."""
    if recipe.method not in LORA_METHODS or recipe.method == "dora":
        raise TrainingError(
            f"method {recipe.method!r} isn't for a base that FSDP cuts up: lora, qlora and rslora alone are known to "
            "leave its weights to its own layers; use one of them, or launch with examples/accelerate/ddp.yaml"
        )
    if recipe.base_quantization == "int8":
        raise TrainingError("an 8-bit base can't be cut up by FSDP; use method: qlora, or quantization: none")


def _on(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true", "yes")
