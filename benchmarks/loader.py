"""The loader against the bare backbone and PEFT, side by side in one run, on models that it makes itself.

    python benchmarks/loader.py [--shapes 10M 30M] [--adapters 16 32] [--rows 32] [--repetitions 5]
                                [--without-peft] [--adapter-dtypes float32 float16]

Ratios are run by run to the bare backbone, the bound that nothing beats. PEFT's mixed batch takes most of the time, so
that without it there is time for more repetitions. With several dtypes each has tables of its own. Figures with their
dates: docs/benchmarks.md.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

from contenders import Contenders
from decode import against_bare
from models import make_base
from timing import environment, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["10M", "30M"])
    parser.add_argument("--adapters", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--without-peft", action="store_true", help="time the loader and the bare backbone alone")
    parser.add_argument("--adapter-dtypes", nargs="+", default=["float32"], help="what lorary keeps adapters in")
    options = parser.parse_args()
    print(environment())
    for shape, adapters, dtype in itertools.product(options.shapes, options.adapters, options.adapter_dtypes):
        with tempfile.TemporaryDirectory() as name:
            base = make_base(Path(name) / "base", shape)
            print(f"\n{shape} Llama shape, rank 16 on all linears, {adapters} adapters resident, kept in {dtype}\n")
            both = Contenders(
                base,
                Path(name),
                adapters=adapters,
                rows=options.rows,
                peft=not options.without_peft,
                adapter_dtype=dtype,
            )
            for rows in against_bare(both, options.repetitions):
                print(table(rows), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
