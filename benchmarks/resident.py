"""How figures change with the number of resident adapters: steps, swaps and loading, lorary's and PEFT's.

python benchmarks/resident.py [--shape 10M] [--resident 16 64 512] [--peft 16 64] [--rows 32] [--plot FILE.png]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from contenders import Contenders
from decode import STEPS, steps
from models import make_adapters, make_base
from plots import plot_curves
from timing import compare, environment, synchronise, table

SWAPS = 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="10M")
    parser.add_argument("--resident", type=int, nargs="+", default=[16, 64, 512])
    parser.add_argument("--peft", type=int, nargs="*", default=[16, 64], help="numbers that PEFT is measured with too")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    print(environment())
    print(f"\n{options.shape} Llama shape, rank 16 on all linears, {options.rows} rows\n")
    stepped, swapped = [], []
    curves: dict[str, list[tuple[float, float]]] = {}
    for resident in options.resident:
        with tempfile.TemporaryDirectory() as name:
            base = make_base(Path(name) / "base", options.shape)
            peft = resident in options.peft
            both = Contenders(base, Path(name), adapters=resident, rows=options.rows, peft=peft)
            with steps(both) as contenders:
                timings = compare(contenders, repetitions=options.repetitions)
            for contender, timing in timings.items():
                plain = contender.replace(f"{resident} adapters mixed", f"{min(resident, options.rows)} adapters mixed")
                curves.setdefault(contender.replace(f"{resident} adapters ", ""), []).append(
                    (resident, timing.over_first)
                )
                stepped.append({
                    "resident": resident, "a step": plain,
                    "ms": f"{timing.median / STEPS * 1e3:.2f}", "over bare (min to max)": timing.ratio,
                })  # fmt: skip
            swapped += swaps(both, base, Path(name), resident)
    print(table(stepped), end="\n\n")
    print(table(swapped))
    if options.plot:
        title = f"A single-token step, {options.shape}, {options.rows} rows"
        plot_curves(
            curves,
            options.plot,
            title=title,
            x="adapters resident",
            y="over the bare backbone",
            log_y=bool(options.peft),
        )


def swaps(both: Contenders, base: Path, work: Path, resident: int) -> list[dict[str, object]]:
    """Putting an adapter into its slot against one contiguous copy of as many bytes; loading from disk against PEFT."""
    backbone = both.backbone
    first, *folders = make_adapters(base, work / "more", 1 + SWAPS, seed=resident)
    backbone.swap(both.names[0], first)
    before = backbone.stats().swaps
    loads = [_seconds(partial(backbone.swap, both.names[0], folder)) for folder in folders]
    copies = list(backbone.stats().swap_seconds[-SWAPS:])
    assert backbone.stats().swaps == before + SWAPS  # each was a copy
    on_gpu = both.device.type == "cuda"
    if on_gpu:  # where those are the times of queueing a copy
        copies = _placed_again(backbone, both.names[0])
    slot_bytes = backbone.stats().slot_bytes
    # Sources and places that no cache holds, as an adapter from the host and its slot are; for a GPU pinned, as it is.
    sources = [torch.ones(slot_bytes, dtype=torch.uint8, pin_memory=on_gpu) for _ in range(SWAPS)]
    places = torch.zeros(SWAPS, slot_bytes, dtype=torch.uint8, device=both.device)
    contiguous = [
        _seconds(partial(place.copy_, source, non_blocking=on_gpu))
        for place, source in zip(places, sources, strict=True)
    ]
    figures = {
        f"one contiguous copy of {slot_bytes / 1e6:.1f} MB": contiguous,
        "lorary, from host to slot": copies,
        "lorary, load: read, checked, proven, placed": loads,
    }
    if both.peft is not None:
        from peft.utils.hotswap import hotswap_adapter

        figures["PEFT set_adapter"] = [_seconds(partial(both.peft.set_adapter, name)) for name in both.names[:SWAPS]]
        figures["PEFT hotswap_adapter"] = [
            _seconds(partial(hotswap_adapter, both.peft, str(folder), both.names[0])) for folder in folders
        ]
        figures["PEFT load_adapter"] = [
            _seconds(partial(both.peft.load_adapter, folder, adapter_name=f"more-{folder.name}")) for folder in folders
        ]
    return [
        {
            "resident": resident,
            "swap": name,
            "ms (median)": f"{statistics.median(taken) * 1e3:.2f}",
            "min to max": f"{min(taken) * 1e3:.2f} to {max(taken) * 1e3:.2f}",
        }
        for name, taken in figures.items()
    ]


def _placed_again(backbone: Any, name: str) -> list[float]:
    """Seconds of copying an adapter from the host into the slot that it has, until it is there."""
    residency = backbone._residency
    with residency.lease([residency.get(name)]) as routing:
        block = routing.adapters[0].content.block
        return [_seconds(lambda: routing.arena.place(routing.slots[0], block)) for _ in range(SWAPS)]


def _seconds(run: Callable[[], object]) -> float:
    synchronise()
    started = time.perf_counter()
    run()
    synchronise()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
