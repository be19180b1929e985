"""The whole way on one GPU, in one call: train LoRA, QLoRA and 8-bit, gate, then all of the loader's figures.

    python benchmarks/gpu_check.py [--shape 1B] [--adapters 16] [--rows 32] [--seconds 540] [--parts lora generation]

Makes its own model (random weights) and its own data. Tables are printed as soon as they are there; a part that fails
says why, and the others go on. Without a GPU it runs on the CPU, on a tiny shape, which checks the script and says
nothing of speed; without bitsandbytes the quantized rows are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import random
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from compiled import compiled
from contenders import Contenders
from decode import single_steps, whole_generations, whole_prompts
from engine import make_load
from engine import measure as through_engine
from graphs import compiled_generations
from models import make_base, words
from resident import swaps
from timing import environment, table

from lorary.adapters.kernel.measured import measured
from lorary.adapters.layer import lora

_TOLD = 2000  # characters of a failure: those of a compiler can be longer than all the tables
_SHARE = 60.0  # seconds, after which a comparison begins no other turn

Part = Callable[[], Iterator[str]]
"""Yields what is to be printed, table by table."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--shape", default="1B" if on_gpu else "tiny", help="tiny, 10M, 30M or 1B")
    parser.add_argument("--adapters", type=int, default=16, help="different adapters in the mixed batch")
    parser.add_argument("--rows", type=int, default=32, help="rows of the mixed batch")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each method")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--mode", default="reduce-overhead" if on_gpu else None, help="of torch.compile")
    parser.add_argument("--seconds", type=float, default=540, help="after which no other part begins")
    parser.add_argument("--parts", nargs="+", metavar="PART", help="these alone, in this order")
    options = parser.parse_args()
    began = time.perf_counter()
    print(environment(), flush=True)
    with tempfile.TemporaryDirectory() as name:
        parts = Check(Path(name), options).parts()
        chosen = options.parts or list(parts)
        if not set(chosen) <= set(parts):
            parser.error(f"--parts: expected some of {', '.join(parts)}")
        print(f"{options.shape} Llama shape\n", flush=True)
        run({name: parts[name] for name in chosen}, began, options.seconds)


def run(parts: Mapping[str, Part], began: float, seconds: float) -> None:
    """Print each part's tables; none begins later than ``seconds`` after ``began``, or on a GPU that doesn't answer."""
    for name, part in parts.items():
        if time.perf_counter() - began > seconds:
            print(f"{name}: left out, the time is up", flush=True)
            continue
        try:
            for text in part():
                print(text, end="\n\n", flush=True)
        except Exception as error:
            told = "".join(traceback.format_exception(error, limit=-6))
            print(f"{name}: FAILED\n{told if len(told) < _TOLD else '... ' + told[-_TOLD:]}", flush=True)
        print(f"({name}: {time.perf_counter() - began:.0f} s since the beginning)\n", flush=True)
        try:
            _tidy()
        except RuntimeError as error:  # an illegal access: this process gets no other answer
            print(f"the GPU doesn't answer any more; ask for the other --parts again: {error!s:.300}", flush=True)
            return


def _tidy() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.empty_cache()


class Check:
    """What is measured, on a base and with adapters that are made when they are first needed."""

    def __init__(self, work: Path, options: argparse.Namespace) -> None:
        self.work = work
        self.options = options

    def parts(self) -> dict[str, Part]:
        """What can be asked for by name, in the order in which it is told."""
        return {
            "lora": lambda: self.train("lora", "none"),
            "nf4": lambda: self.train("qlora", "nf4"),
            "int8": lambda: self.train("lora", "int8"),
            "generation": lambda: self.compare(whole_generations),
            "steps": lambda: self.compare(single_steps),
            "prefill": lambda: self.compare(whole_prompts),
            "swaps": self.swaps,
            "ways": self.ways,
            "sums": lambda: self.compiled("sums", ("cuda", "cpu")),
            "products": lambda: self.compiled("batched products", ()),
            "engine": self.engine,
            "graphs": self.graphs,
        }

    @cached_property
    def base(self) -> Path:
        """The folder of a base with random weights."""
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        return make_base(self.work / "base", self.options.shape, dtype=dtype)

    @cached_property
    def both(self) -> Contenders:
        """The same adapters by lorary and by PEFT."""
        return Contenders(self.base, self.work, adapters=self.options.adapters, rows=self.options.rows)

    def train(self, method: str, quantization: str) -> Iterator[str]:
        """What training with a method came to, and its gate."""
        yield table([train(self.base, self.work, self.options.steps, method, quantization)])

    def compare(self, measure: Callable[[Contenders, int, float], list[dict[str, object]]]) -> Iterator[str]:
        """One of the comparisons with PEFT and the bare model."""
        yield table(measure(self.both, self.options.repetitions, _SHARE))

    def swaps(self) -> Iterator[str]:
        """What swaps and loads take, and the least that a mixed step can."""
        yield table(swaps(self.both, self.base, self.work, self.options.adapters))
        yield f"the bound: {bound(self.both):.2f} x bare, by the bytes that a mixed step reads"

    def ways(self) -> Iterator[str]:
        """What was measured so far for the loader itself to choose by."""
        yield table(ways())

    def compiled(self, way: str, devices: tuple[str, ...]) -> Iterator[str]:
        """One-token steps of several adapters, compiled one of two ways."""
        options = self.options
        fresh = Contenders(self.base, self.work / way, adapters=options.adapters, rows=options.rows, peft=False)
        lora._SUMS_ON = devices  # so that the faster way can be told, and made the only one
        yield f"one-token steps of several adapters as {way}"
        yield table(compiled(fresh, options.mode, options.repetitions))

    def engine(self) -> Iterator[str]:
        """Continuous batching against transformers' own."""
        options = self.options
        yield table(through_engine(self.base, self.work / "engine", options.adapters, make_load(64), repetitions=2))

    def graphs(self) -> Iterator[str]:
        """Generation on a compiled backbone, of the tiny shape: does it give the same?"""
        small = make_base(self.work / "small", "tiny")
        yield table(compiled_generations(small, self.work, self.options.mode))


def ways() -> list[dict[str, object]]:
    """What products of several adapters were measured to take outside of compiled code, by both ways; one row each."""
    if not measured():
        return [{"products of several adapters": "by PyTorch alone: there is no Triton for this device"}]
    return [
        {
            "products of several adapters": f"{kind.inputs} to {kind.outputs}, rank {kind.rank}, {kind.dtype}",
            "vectors, blocks up to": f"{kind.vectors}, {kind.blocks}",
            "PyTorch, us": f"{found.in_torch * 1e6:.0f}",
            "Triton, us": " ".join(found.unused.split())[:200] or f"{found.in_kernel * 1e6:.0f}",
            "taken": "Triton" if found.faster else "PyTorch",
        }
        for kind, found in measured().items()
    ]


def bound(both: Contenders) -> float:
    """1 + the bytes of a batch's adapters over those of the base: what reading alone allows a mixed step."""
    stats = both.backbone.stats()
    return 1 + len(set(both.mixed)) * stats.slot_bytes / stats.backbone_bytes


def train(base: Path, work: Path, steps: int, method: str, quantization: str) -> dict[str, object]:
    """Train with a method through the recipe, gate included."""
    from lorary.hub import Registry
    from lorary.training import Recipe, train

    label = f"{method} on {quantization}"
    if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        return {"training": label, "gate": "left out: bitsandbytes isn't installed"}
    data = write_rows(work / "reverse.jsonl", 256, seed=0), write_rows(work / "held-out.jsonl", 64, seed=1)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    recipe = Recipe.from_flags({
        "name": f"reverse-{quantization}", "domain": "check", "task": "text-generation", "base": str(base),
        "method": method, "quantization": quantization, "data.train": str(data[0]), "data.test": str(data[1]),
        "training.max_steps": steps, "training.learning_rate": 5e-4, "training.batch_size": 16,
        "lora.rank": 16, "output": str(work / f"run-{quantization}"),
    })  # fmt: skip
    version = train(recipe, Registry(work / "registry.db"))
    manifest = version.manifest
    assert manifest is not None  # a training writes one
    provenance = manifest.provenance
    peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
    return {
        "training": label,
        "gate": "passed",
        "trainable": f"{version.parameters:,}",
        "held-out loss": f"{version.metrics['untrained']['loss']:.3f} -> {version.metrics['test']['loss']:.3f}",
        "dtype": manifest.numerics.dtype,
        "seconds": f"{provenance['seconds']:.1f}",
        "tokens/s": f"{provenance['tokens_per_second']:.0f}",
        "peak GiB": f"{peak:.2f}",
    }


def write_rows(path: Path, count: int, seed: int) -> Path:
    """Instruction rows: a few made-up words, and the same ones the other way round."""
    choose = random.Random(seed)
    vocabulary = words(200)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(count):
            chosen = choose.sample(vocabulary, 5)
            file.write(json.dumps({"prompt": " ".join(chosen), "completion": " " + " ".join(reversed(chosen))}) + "\n")
    return path


if __name__ == "__main__":
    main()
