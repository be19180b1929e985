"""The whole way on one GPU, in one call: train LoRA, QLoRA and 8-bit, gate, then all of the loader's figures.

    python benchmarks/gpu_check.py [--shape 1B] [--adapters 16] [--rows 32] [--mode reduce-overhead]

Makes its own model (random weights) and its own data. Without a GPU it runs on the CPU, on a tiny shape, which checks
the script and says nothing of speed; without bitsandbytes the quantized rows are left out, and the table says so.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import tempfile
from pathlib import Path

import torch
from compiled import compiled
from contenders import Contenders
from decode import against_bare
from models import make_base, words
from resident import swaps
from timing import environment, table

from lorary.adapters.kernel.measured import measured
from lorary.adapters.layer import lora


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    on_gpu = torch.cuda.is_available()
    parser.add_argument("--shape", default="1B" if on_gpu else "tiny", help="tiny, 10M, 30M or 1B")
    parser.add_argument("--adapters", type=int, default=16, help="different adapters in the mixed batch")
    parser.add_argument("--rows", type=int, default=32, help="rows of the mixed batch")
    parser.add_argument("--steps", type=int, default=30, help="training steps of each method")
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--mode", default="reduce-overhead" if on_gpu else None, help="of torch.compile")
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        dtype = torch.bfloat16 if on_gpu else torch.float32
        base = make_base(work / "base", options.shape, dtype=dtype)
        print(f"base: {options.shape} Llama shape, {dtype}\n")
        print(table(train_each(base, work, options.steps)), end="\n\n")
        both = Contenders(base, work, adapters=options.adapters, rows=options.rows)
        for rows in against_bare(both, options.repetitions):
            print(table(rows), end="\n\n")
        print(table(swaps(both, base, work, options.adapters)), end="\n\n")
        for way, devices in (("sums", ("cuda", "cpu")), ("batched products", ())):
            lora._SUMS_ON = devices  # so that the faster way can be told, and made the only one
            print(f"one-token steps of several adapters as {way}\n")
            fresh = Contenders(base, work / way, adapters=options.adapters, rows=options.rows, peft=False)
            print(table(compiled(fresh, options.mode, options.repetitions)), end="\n\n")
        print(table(ways()), end="\n\n")
        print(f"the bound: {bound(both):.2f} x bare, by the bytes that a mixed step reads")


def ways() -> list[dict[str, object]]:
    """What products of several adapters were measured to take outside of compiled code, by both ways; one row each."""
    if not measured():
        return [{"products of several adapters": "by PyTorch alone: there is no Triton for this device"}]
    return [
        {
            "products of several adapters": f"{kind.inputs} to {kind.outputs}, rank {kind.rank}, {kind.dtype}",
            "vectors, blocks up to": f"{kind.vectors}, {kind.blocks}",
            "PyTorch, us": f"{found.in_torch * 1e6:.0f}",
            "Triton, us": found.unused or f"{found.in_kernel * 1e6:.0f}",
            "taken": "Triton" if found.faster else "PyTorch",
        }
        for kind, found in measured().items()
    ]


def bound(both: Contenders) -> float:
    """1 + the bytes of a batch's adapters over those of the base: what reading alone allows a mixed step."""
    stats = both.backbone.stats()
    return 1 + len(set(both.mixed)) * stats.slot_bytes / stats.backbone_bytes


def train_each(base: Path, work: Path, steps: int) -> list[dict[str, object]]:
    """Train with each method through the recipe, gate included; one row each."""
    from lorary.hub import Registry
    from lorary.training import Recipe, train

    data = write_rows(work / "reverse.jsonl", 256, seed=0), write_rows(work / "held-out.jsonl", 64, seed=1)
    registry = Registry(work / "registry.db")
    rows = []
    for method, quantization in (("lora", "none"), ("qlora", "nf4"), ("lora", "int8")):
        label = f"{method} on {quantization}"
        if quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
            rows.append({"training": label, "gate": "left out: bitsandbytes isn't installed"})
            continue
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        recipe = Recipe.from_flags({
            "name": f"reverse-{quantization}", "domain": "check", "task": "text-generation", "base": str(base),
            "method": method, "quantization": quantization, "data.train": str(data[0]), "data.test": str(data[1]),
            "training.max_steps": steps, "training.learning_rate": 5e-4, "training.batch_size": 16,
            "lora.rank": 16, "output": str(work / f"run-{quantization}"),
        })  # fmt: skip
        version = train(recipe, registry)
        provenance = version.manifest.provenance
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0
        rows.append({
            "training": label,
            "gate": "passed",
            "trainable": f"{version.parameters:,}",
            "held-out loss": f"{version.metrics['untrained']['loss']:.3f} -> {version.metrics['test']['loss']:.3f}",
            "dtype": version.manifest.numerics.dtype,
            "seconds": f"{provenance['seconds']:.1f}",
            "peak GiB": f"{peak:.2f}",
        })  # fmt: skip
    return rows


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
