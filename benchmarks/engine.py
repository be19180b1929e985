"""Requests a second through the engine, against transformers' own continuous batching on the bare model, in one run.

    python benchmarks/engine.py [--shapes 10M 30M] [--adapters 16] [--requests 64] [--repetitions 5]

Requests have prompts and answers of different lengths, and all come at once. transformers serves them without adapters,
with the same cache and steps: the bound. ``Backbone.generate`` takes the same requests in batches of 32, each batch as
long as its longest answer, which is what continuous batching is there to avoid.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models import VOCABULARY, make_adapters, make_base, words
from timing import compare, environment, table

SETTINGS = {"cache_tokens": 8192, "batch_tokens": 512, "page_tokens": 16, "max_running": 32}
BATCH = 32


@dataclass(frozen=True)
class Load:
    """Requests: their prompts and how many tokens each is to generate."""

    prompts: list[str]
    lengths: list[int]


def make_load(requests: int) -> Load:
    """Prompts of 8 to 64 words and answers of 8 to 64 tokens, always the same ones."""
    chance, vocabulary = random.Random(0), words(VOCABULARY - 4)
    prompts = [" ".join(chance.choices(vocabulary, k=chance.randint(8, 64))) for _ in range(requests)]
    return Load(prompts, [chance.randint(8, 64) for _ in range(requests)])


@contextmanager
def bare_manager(base: Path, load: Load, like: Any) -> Iterator[Callable[[], object]]:
    """transformers' continuous batching on a model of its own, where and as the backbone ``like`` is.

    Yields a function that serves the load once.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    model = AutoModelForCausalLM.from_pretrained(base, dtype=like.dtype).to(like.device).eval()
    tokenizer = AutoTokenizer.from_pretrained(base)
    config = ContinuousBatchingConfig(
        page_size=SETTINGS["page_tokens"],
        num_blocks=SETTINGS["cache_tokens"] // SETTINGS["page_tokens"],
        max_batch_tokens=SETTINGS["batch_tokens"],
        max_requests_per_batch=SETTINGS["max_running"],
        allow_block_sharing=False,
        auto_switch_to_flash=False,
        use_cuda_graph=False,
    )
    manager = model.init_continuous_batching(GenerationConfig(do_sample=False, eos_token_id=-1), config)
    manager.start()

    def run() -> None:
        for prompt, length in zip(load.prompts, load.lengths, strict=True):
            manager.add_request(tokenizer(prompt)["input_ids"], max_new_tokens=length)
        for _ in load.prompts:
            assert manager.get_result(timeout=600) is not None

    try:
        yield run
    finally:
        manager.stop(block=True)
        manager.destroy()


def through(engine: Any, load: Load, names: Sequence[str | None]) -> list[tuple[int, ...]]:
    """Serve the load once, the adapters in turn; returns the tokens of each answer."""
    requests = [
        engine.submit(prompt, names[place % len(names)], max_new_tokens=length, eos_token_id=None)
        for place, (prompt, length) in enumerate(zip(load.prompts, load.lengths, strict=True))
    ]
    return [request.result(600).tokens for request in requests]


def in_batches(backbone: Any, load: Load, names: list[str | None]) -> None:
    """The same through ``generate``: each batch goes on until its longest answer is done."""
    for start in range(0, len(load.prompts), BATCH):
        part = slice(start, start + BATCH)
        chosen = [names[place % len(names)] for place in range(len(load.prompts))][part]
        longest = max(load.lengths[part])
        backbone.generate(load.prompts[part], chosen, max_new_tokens=longest, min_new_tokens=longest, eos_token_id=None)


def check(backbone: Any, engine: Any, load: Load, names: list[str | None]) -> int:
    """How many of the first eight answers are those of ``generate`` alone: only equal work is worth timing."""
    first = Load(load.prompts[:8], load.lengths[:8])
    answers = through(engine, first, names)
    equal = 0
    for place, (prompt, length) in enumerate(zip(first.prompts, first.lengths, strict=True)):
        text = backbone.generate(prompt, names[place % len(names)], max_new_tokens=length, eos_token_id=None)
        equal += text == backbone.tokenizer.decode(answers[place], skip_special_tokens=True)
    return equal


def measure(base: Path, work: Path, adapters: int, load: Load, repetitions: int) -> list[dict[str, object]]:
    """The contenders' times, and how many answers of the engine are those of ``generate`` alone."""
    from lorary.adapters import Backbone

    backbone = Backbone.from_pretrained(str(base), slots=adapters)
    names: list[str | None] = [backbone.load(folder).name for folder in make_adapters(base, work, adapters)]
    with bare_manager(base, load, backbone) as bare, backbone.engine(**SETTINGS) as engine:
        equal = check(backbone, engine, load, names)
        timings = compare(
            {
                "transformers, bare model": bare,
                "engine, bare backbone": lambda: through(engine, load, [None]),
                "engine, one adapter": lambda: through(engine, load, names[:1]),
                f"engine, {adapters} adapters mixed": lambda: through(engine, load, names),
                f"generate in batches of {BATCH}, {adapters} adapters mixed": lambda: in_batches(backbone, load, names),
            },
            repetitions=repetitions,
        )
    rows: list[dict[str, object]] = [
        {
            "all requests at once": name,
            "requests/s": f"{len(load.prompts) / timing.median:.1f}",
            "tokens/s": f"{sum(load.lengths) / timing.median:.0f}",
            "time over transformers' (min to max)": timing.ratio,
        }
        for name, timing in timings.items()
    ]
    told = f"{len(load.prompts)} requests, {sum(load.lengths)} new tokens; equal to generate alone: {equal} of 8"
    return [*rows, {"all requests at once": told}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["10M", "30M"])
    parser.add_argument("--adapters", type=int, nargs="+", default=[16])
    parser.add_argument("--requests", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment())
    load = make_load(options.requests)
    for shape in options.shapes:
        for adapters in options.adapters:
            with tempfile.TemporaryDirectory() as name:
                base = make_base(Path(name) / "base", shape)
                print(f"\n{shape} Llama shape, {adapters} adapters of rank 16\n")
                print(table(measure(base, Path(name), adapters, load, options.repetitions)), flush=True)


if __name__ == "__main__":
    main()
