"""The loader against the bare backbone and PEFT, side by side in one run, on models that it makes itself.

    python benchmarks/loader.py [--shapes 10M 30M] [--adapters 16] [--rows 32] [--repetitions 5]

Ratios are run by run to the bare backbone, the bound that nothing beats. Figures with their dates: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from decode import decode
from models import make_adapters, make_base
from timing import environment, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["10M", "30M"])
    parser.add_argument("--adapters", type=int, default=16)
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment())
    for shape in options.shapes:
        with tempfile.TemporaryDirectory() as name:
            base = make_base(Path(name) / "base", shape)
            print(f"\n{shape} Llama shape, rank 16 on all linears, {options.adapters} adapters resident\n")
            print(table(decode(base, Path(name), options.adapters, options.rows, options.repetitions)))
            print(f"\n{table(swaps(base, Path(name), options.adapters))}")


def swaps(base: Path, work: Path, adapters: int) -> list[dict[str, object]]:
    """Loading one more adapter beside those resident: lorary's load and slot copy, PEFT's ``load_adapter``."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from lorary.adapters import Backbone

    folders = make_adapters(base, work / "swaps", adapters + 5)
    backbone = Backbone.from_pretrained(str(base), slots=adapters + 5)
    model = AutoModelForCausalLM.from_pretrained(base)
    reference = PeftModel.from_pretrained(model, folders[0], adapter_name=folders[0].name)
    for folder in folders[:adapters]:
        backbone.load(folder)
    for folder in folders[1:adapters]:
        reference.load_adapter(folder, adapter_name=folder.name)
    ours, theirs = [], []
    for folder in folders[adapters:]:
        started = time.perf_counter()
        backbone.load(folder)
        ours.append(time.perf_counter() - started)
        started = time.perf_counter()
        reference.load_adapter(folder, adapter_name=folder.name)
        theirs.append(time.perf_counter() - started)
    copies = backbone.stats().swap_seconds[-5:]
    figures = {
        f"PEFT load_adapter beside {adapters}": theirs,
        f"lorary load beside {adapters}: read, checked, probed": ours,
        f"lorary, from host to slot ({backbone.stats().slot_bytes / 1e6:.1f} MB)": copies,
    }
    return [
        {
            "swap": name,
            "ms (median)": f"{statistics.median(s) * 1e3:.2f}",
            "min to max": f"{min(s) * 1e3:.2f} to {max(s) * 1e3:.2f}",
        }
        for name, s in figures.items()
    ]


if __name__ == "__main__":
    main()
