"""Does a compiled backbone generate what an uncompiled one does? With CUDA graphs, whose outputs the next step reuses.

    python benchmarks/graphs.py [--shape tiny] [--mode reduce-overhead]

Greedy generations of two adapters' rows: with the cache that grows and with the static one, in one thread and in four.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from models import make_adapters, make_base, words
from timing import environment, table

CACHES = {"a growing cache": {}, "a static cache": {"cache_implementation": "static"}}
THREADS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="tiny")
    parser.add_argument("--mode", default="reduce-overhead")
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        print(table(compiled_generations(make_base(Path(name) / "base", options.shape), Path(name), options.mode)))


def compiled_generations(base: Path, work: Path, mode: str | None) -> list[dict[str, object]]:
    """What came of each: the same texts, other ones, or an error."""
    from lorary.adapters import Backbone

    backbone = Backbone.from_pretrained(str(base), slots=2, dtype="float32")
    names = [backbone.load(folder).name for folder in make_adapters(base, work / "two", 2)]
    prompts = [" ".join(words(40)[place : place + 6]) for place in (0, 9)]

    def generate(settings: dict[str, Any]) -> list[str]:
        made: list[str] = backbone.generate(prompts, names, max_new_tokens=8, min_new_tokens=8, **settings)
        return made

    def in_threads(settings: dict[str, Any]) -> list[str]:
        with ThreadPoolExecutor(THREADS) as pool:
            found = list(pool.map(generate, [settings] * THREADS))
        return next((texts for texts in found if texts != found[0]), found[0])

    ways = {"one thread": generate, f"{THREADS} threads": in_threads}
    want = {cache: generate(settings) for cache, settings in CACHES.items()}
    backbone.compile(mode=mode)
    return [
        {"compiled generation": f"{cache}, {way}", "outcome": _outcome(partial(run, settings), want[cache])}
        for cache, settings in CACHES.items()
        for way, run in ways.items()
    ]


def _outcome(run: Callable[[], list[str]], want: list[str]) -> str:
    try:
        return "the same texts" if run() == want else "OTHER TEXTS"
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())[:300]


if __name__ == "__main__":
    main()
