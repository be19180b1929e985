"""Timing side by side: the contenders take turns, so that a machine that slows down slows all of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Timing:
    """The seconds of one contender's runs, and their ratio, run by run, to those of the first one."""

    seconds: list[float]
    ratios: list[float]

    @property
    def median(self) -> float:
        """The median of the seconds."""
        return statistics.median(self.seconds)

    @property
    def over_first(self) -> float:
        """The median of the ratios."""
        return statistics.median(self.ratios)

    @property
    def ratio(self) -> str:
        """Median, least and greatest ratio."""
        return f"{self.over_first:.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"


def compare(
    contenders: Mapping[str, Callable[[], object]],
    *,
    repetitions: int = 7,
    warmup: int = 1,
    within: float = math.inf,
) -> dict[str, Timing]:
    """Run every contender ``repetitions`` times in turn; the first one is what the ratios refer to.

    After ``within`` seconds no other turn begins, so long as there was one that counts.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    ends = time.perf_counter() + within
    for repetition in range(warmup + repetitions):
        if repetition > warmup and time.perf_counter() > ends:
            break
        for name, run in contenders.items():
            synchronise()
            started = time.perf_counter()
            run()
            synchronise()
            if repetition >= warmup:
                seconds[name].append(time.perf_counter() - started)
    first = seconds[next(iter(contenders))]
    return {name: Timing(own, [a / b for a, b in zip(own, first, strict=True)]) for name, own in seconds.items()}


def synchronise() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def environment() -> str:
    """The versions and the machine that figures belong to, on one line."""
    import platform

    import peft
    import transformers

    from lorary.adapters.kernel.mixed_rows import kernel

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return (
        f"{device}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}, peft {peft.__version__}; "
        f"float32 products of adapters on the CPU: {'by PyTorch' if kernel() is None else 'in C'}"
    )


def table(rows: list[dict[str, object]]) -> str:
    """Rows as a Markdown table, columns named by the first row's keys."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "| " + " | ".join("---" for _ in names) + " |"]
    lines += ["| " + " | ".join(str(row.get(name, "")) for name in names) + " |" for row in rows]
    return "\n".join(lines)
