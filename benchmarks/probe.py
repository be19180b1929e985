"""Where the time of a load goes: each step of cold loads from disk, the probe's share of them, on models made here.

    python benchmarks/probe.py [--shapes 10M 30M] [--adapters 24] [--rank 16] [--device cpu]

Every adapter is loaded once, its files dropped from the system's cache before that where the system lets them be.
Figures with their dates: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models import make_adapters, make_base
from timing import environment, synchronise, table

WARMUP = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["10M", "30M"])
    parser.add_argument("--adapters", type=int, default=24)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--device")
    parser.add_argument("--dtype")
    options = parser.parse_args()
    print(environment())
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as name:
            base = make_base(Path(name) / "base", shape)
            folders = make_adapters(base, Path(name), WARMUP + options.adapters, rank=options.rank)
            size = (folders[0] / "adapter_model.safetensors").stat().st_size
            print(f"\n{shape} Llama shape, rank {options.rank} on all linears, files of {size / 1e6:.1f} MB\n")
            print(table(measure(base, folders, options.device, options.dtype)), flush=True)


def measure(base: Path, folders: list[Path], device: str | None, dtype: str | None) -> list[dict[str, object]]:
    """Load every folder, the first few to warm up; the median time of each step and its share of the whole."""
    from lorary.adapters import Backbone

    backbone = Backbone.from_pretrained(str(base), device=device, dtype=dtype, slots=16)
    loads: list[dict[str, float]] = []
    for index, folder in enumerate(folders):
        drop_from_cache(folder)
        with clock() as steps:
            started = time.perf_counter()
            backbone.load(folder, f"adapter-{index % 16}")
            synchronise()
            steps["the whole load"] = time.perf_counter() - started
        if index >= WARMUP:
            loads.append(dict(steps))
    whole = [load["the whole load"] for load in loads]
    return [
        {
            "step": step,
            "ms (median)": f"{statistics.median(load[step] for load in loads) * 1e3:.2f}",
            "share": f"{statistics.median(load[step] / all_ for load, all_ in zip(loads, whole, strict=True)):.1%}",
        }
        for step in loads[0]
    ]


@contextmanager
def clock() -> Iterator[dict[str, float]]:
    """Within the block, the seconds that each step of loading takes are added up."""
    from lorary.adapters.backbone import intake
    from lorary.adapters.layer.slots import Arena
    from lorary.adapters.matching.fitting import Fitter
    from lorary.adapters.tiers import arrivals
    from lorary.adapters.tiers.weights import WeightsReader

    spent: dict[str, float] = defaultdict(float)

    def timed(step: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                synchronise()
                spent[step] += time.perf_counter() - started

        return run

    @contextmanager
    def read(reader: WeightsReader, checkpoint: Any) -> Iterator[Any]:
        opened = whole_read(reader, checkpoint)
        weights = timed("read and hash", opened.__enter__)()
        try:
            yield weights
        finally:
            opened.__exit__(None, None, None)

    whole_read = WeightsReader.read
    steps = {
        (intake, "find_checkpoint"): "find it, check its headers",
        (Fitter, "fit"): "match its keys",
        (WeightsReader, "read"): None,
        (Fitter, "factors"): "check its numbers",
        (Fitter, "parts"): "build its head",
        (arrivals, "pack"): "stage",
        (Arena, "place"): "copy into the slot",
        (intake, "demand_effect"): "probe",
    }
    kept = {place: getattr(*place) for place in steps}
    try:
        for (owner, name), step in steps.items():
            setattr(owner, name, read if step is None else timed(step, kept[owner, name]))
        yield spent
    finally:
        for (owner, name), function in kept.items():
            setattr(owner, name, function)


def drop_from_cache(folder: Path) -> None:
    """Ask the system to forget what it holds of a folder's files."""
    if not hasattr(os, "posix_fadvise"):
        return
    for path in folder.iterdir():
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


if __name__ == "__main__":
    main()
