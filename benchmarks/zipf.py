"""Many more adapters than slots: throughput as the number of adapters grows, requests Zipf-distributed over them.

    python benchmarks/zipf.py [--adapters 5 32 100 500 2000] [--slots 32] [--rows 32] [--plot FILE.png]

The setting of S-LoRA (Sheng et al. 2023): rank 8 on the attention, requests by a power law of exponent 1. Each batch
draws an adapter for every row; what isn't in a slot is brought from the host.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from models import VOCABULARY, make_adapters, make_base
from plots import plot_curves
from timing import Timing, environment, table

ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
TOKENS = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="10M")
    parser.add_argument("--adapters", type=int, nargs="+", default=[5, 32, 100, 500, 2000])
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--batches", type=int, default=5, help="batches of a repetition")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        base = make_base(Path(name) / "base", options.shape)
        most = max(options.adapters)
        folders = make_adapters(base, Path(name) / "adapters", most, rank=8, targets=ATTENTION)
        contenders = {count: Served(base, folders[:count], options) for count in options.adapters}
        timings, figures = _take_turns(contenders, options)
    print(f"\n{options.shape} Llama shape, rank 8 on the attention, {options.slots} slots, {options.rows} rows\n")
    print(table([
        {
            "adapters": count,
            "tokens a second": f"{options.rows * TOKENS * options.batches / timing.median:,.0f}",
            "seconds over those of the first (min to max)": timing.ratio,
            "different adapters a batch": f"{contenders[count].distinct / contenders[count].batches:.1f}",
            "swaps a batch": f"{figures[count]:.1f}",
        }
        for count, timing in timings.items()
    ]))  # fmt: skip
    if options.plot:
        first = min(contenders)
        kept = [(float(count), 100 / timing.over_first) for count, timing in timings.items()]
        title = f"Zipf-distributed requests, {options.slots} slots, {options.shape}"
        plot_curves(
            {"lorary": kept}, options.plot, title=title, x="adapters", y=f"throughput, % of that with {first} adapters"
        )


class Served:
    """A backbone with these adapters loaded, and the requests of its batches."""

    def __init__(self, base: Path, folders: list[Path], options: argparse.Namespace) -> None:
        from lorary.adapters import Backbone

        self.backbone = Backbone.from_pretrained(str(base), slots=options.slots)
        started = time.perf_counter()
        for folder in folders:
            self.backbone.load(folder)
        print(f"{len(folders)} loaded in {time.perf_counter() - started:.1f} s", flush=True)
        self._names = [folder.name for folder in folders]
        self._weights = 1 / torch.arange(1, len(folders) + 1, dtype=torch.float64)
        self._generator = torch.Generator().manual_seed(0)
        ids = torch.randint(4, VOCABULARY, (options.rows, TOKENS), generator=self._generator)
        self._ids = ids.to(self.backbone.device)
        self.distinct = self.batches = 0

    def run(self, batches: int) -> None:
        """Generate for ``batches`` batches."""
        rows = len(self._ids)
        for _ in range(batches):
            drawn = torch.multinomial(self._weights, rows, replacement=True, generator=self._generator).tolist()
            self.distinct += len(set(drawn))
            self.batches += 1
            with torch.no_grad(), self.backbone.using([self._names[place] for place in drawn]) as model:
                model.generate(
                    input_ids=self._ids, attention_mask=torch.ones_like(self._ids), max_new_tokens=TOKENS,
                    min_new_tokens=TOKENS, do_sample=False, pad_token_id=0,
                )  # fmt: skip


def _take_turns(
    contenders: dict[int, Served], options: argparse.Namespace
) -> tuple[dict[int, Timing], dict[int, float]]:
    """Seconds of each repetition, contenders in turn, and the swaps that a batch took."""
    seconds: dict[int, list[float]] = {count: [] for count in contenders}
    for served in contenders.values():
        served.run(options.batches)  # a first round fills the slots, as it would be in service
    before = {count: served.backbone.stats().evictions for count, served in contenders.items()}
    for _ in range(options.repetitions):
        for count, served in contenders.items():
            started = time.perf_counter()
            served.run(options.batches)
            seconds[count].append(time.perf_counter() - started)
    first = seconds[next(iter(contenders))]
    timings = {count: Timing(own, [a / b for a, b in zip(own, first, strict=True)]) for count, own in seconds.items()}
    ran = options.repetitions * options.batches
    swaps = {count: (served.backbone.stats().evictions - before[count]) / ran for count, served in contenders.items()}
    return timings, swaps


if __name__ == "__main__":
    main()
