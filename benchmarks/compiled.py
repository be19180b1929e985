"""The compiled backbone: one-token passes, swaps between them, and how often anything was compiled again.

    python benchmarks/compiled.py [--shape 30M] [--adapters 16] [--rows 32] [--mode MODE]

MODE is torch.compile's; ``reduce-overhead`` records CUDA graphs. Passes are without a cache, so that both contenders
compile one shape.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from contenders import Contenders
from models import make_base
from timing import compare, environment, table

PASSES = 8  # of one repetition


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="30M")
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--mode", default=None)
    parser.add_argument("--repetitions", type=int, default=15)
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        base = make_base(Path(name) / "base", options.shape)
        both = Contenders(base, Path(name), adapters=options.adapters, rows=options.rows, peft=False)
        print(f"\n{options.shape} Llama shape, rank 16 on all linears, {options.adapters} adapters resident\n")
        print(table(compiled(both, options.mode, options.repetitions)))


def compiled(both: Contenders, mode: str | None, repetitions: int) -> list[dict[str, object]]:
    """Timings of one-token passes, eager and compiled, each over the eager bare model."""
    from torch._dynamo.utils import counters

    eager = _passes(both, both.bare, "")
    timings = compare(eager, repetitions=repetitions)
    bare = torch.compile(both.bare, mode=mode)
    both.backbone.compile(mode=mode)
    fast = {"bare backbone": eager["bare backbone"]} | _passes(both, bare, ", compiled")
    for run in fast.values():
        run()
    before = counters["stats"]["unique_graphs"]
    timings |= compare(fast, repetitions=repetitions)
    for folder in both.folders[1:4]:
        both.backbone.swap(both.names[0], folder)
        fast["lorary, one adapter, compiled"]()
    again = counters["stats"]["unique_graphs"] - before
    rows: list[dict[str, object]] = [
        {"a one-token pass": name, "ms": f"{timing.median / PASSES * 1e3:.2f}", "over bare (min to max)": timing.ratio}
        for name, timing in timings.items()
    ]
    return [*rows, {"a one-token pass": f"graphs compiled again, over all passes and 3 swaps: {again}"}]


def _passes(both: Contenders, bare: Any, suffix: str) -> dict[str, Callable[[], object]]:
    token = both.inputs["input_ids"][:, -1:]

    def repeat(model: Any) -> None:
        with torch.no_grad():
            for _ in range(PASSES):
                model(input_ids=token, use_cache=False)

    def ours(names: list[Any]) -> None:
        with both.backbone.using(names) as model:
            repeat(model)

    return {
        f"bare backbone{suffix}": lambda: repeat(bare),
        f"lorary, one adapter{suffix}": lambda: ours(both.names[:1]),
        f"lorary, {len(both.names)} adapters mixed{suffix}": lambda: ours(both.mixed),
    }


if __name__ == "__main__":
    main()
