"""A run's cost: from the step's, the rows and the device to memory, steps and time."""

from __future__ import annotations

import functools
import math
import time
from dataclasses import dataclass

import torch

from lorary.training.estimate.batches import Widths, batches_of_an_epoch
from lorary.training.estimate.past import PastRuns
from lorary.training.estimate.step import StepCost
from lorary.training.recipe import Recipe
from lorary.training.recipe.steps import steps_per_epoch

CUDA_CONTEXT = 500 * 10**6
"""Bytes that a process takes on a GPU before torch counts anything: driver, kernels."""

_KEPT = {"cuda": 1.05, "cpu": 1.5}
"""How much more than the activations the allocator holds: torch's own on a GPU, the C library's on a CPU.

The C library keeps freed blocks that it can't join; with MiniLM, 64 tokens and 16 rows the process grew by 1.47 times
the activations.
"""

_REACHED = 0.4
"""The share of a bare product's speed that training steps reach."""

_SIZE = 1024
"""Inputs and outputs of that product, and its rows at most."""

_ROUND = 0.005
"""How many seconds of it are timed at once."""


@dataclass(frozen=True)
class RunCost:
    """What a run needs. Bytes, optimizer steps, floating-point operations, seconds (None: nothing to judge by).

    ``libraries``: what the process holds before the model; of a GPU, its context. ``basis`` says where the seconds
    come from; ``kept`` is by how much the allocator goes beyond the activations.
    """

    step: StepCost
    libraries: int
    steps: int
    flops: int
    seconds: float | None
    basis: str
    kept: float

    @property
    def peak(self) -> int:
        """The most memory at any time, in bytes, on the device that trains."""
        return self.libraries + self.step.weights + self.step.adapter + math.ceil(self.kept * self.step.activations)


def run_cost(
    recipe: Recipe, step: StepCost, widths: Widths, device: torch.device, past: PastRuns, *, libraries: int,
    measure: bool = False,
) -> RunCost:  # fmt: skip
    """The cost of a whole run.

    Args:
        step: of the largest batch.
        widths: of the training rows, as batches are made of them.
        past: runs that the catalogue remembers; those on the same device tell the speed.
        libraries: bytes, see :func:`held_by_libraries`.
        measure: time a product on the device where no run tells the speed.
    """
    training = recipe.training
    per_epoch = steps_per_epoch(len(widths), training.batch_size, training.gradient_accumulation)
    steps = training.max_steps or math.ceil(training.epochs * per_epoch)
    # An epoch's tokens with their padding; what is linear in them makes up nearly all of the arithmetic.
    batches = steps / per_epoch * batches_of_an_epoch(widths, training.batch_size, training.seed)
    flops = int(step.flops * batches)
    rate = past.rate(recipe, device)
    count = past.count(recipe, device)
    basis = f"from {count} past run{'s' if count != 1 else ''} on this device"
    if rate is None and measure:
        rows = min(_SIZE, max(64, step.tokens))
        rate, basis = _REACHED * product_rate(device, rows), "from a product timed on this device; rough"
    seconds = flops / rate if rate else None
    return RunCost(
        step,
        libraries,
        steps,
        flops,
        seconds,
        basis if rate else "nothing to judge by",
        _KEPT.get(device.type, 1.5),
    )


def held_by_libraries(device: torch.device) -> int:
    """Bytes that are held before a model is: by this process in memory, or by the context of a GPU."""
    if device.type == "cuda":
        return CUDA_CONTEXT
    import psutil

    return int(psutil.Process().memory_info().rss)


@functools.cache
def product_rate(device: torch.device, count: int) -> float:
    """Floating-point operations a second of a matrix product of ``count`` rows; a process measures it once."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    rows = torch.rand(count, _SIZE, device=device, dtype=dtype)
    weight = torch.rand(_SIZE, _SIZE, device=device, dtype=dtype)

    def timed(times: int) -> float:
        started = time.perf_counter()
        for _ in range(times):
            rows @ weight
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - started) / times

    timed(1)
    # Of a product that takes a while, a few tell as much as many, and the clock's own steps don't matter.
    times = max(1, min(10, math.ceil(_ROUND / timed(1))))
    fastest = min(timed(times) for _ in range(5))
    return 2 * count * _SIZE * _SIZE / fastest
