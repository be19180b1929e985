"""What adapters cost in memory: their slots' own bytes, what the process grows by, and what as many models would take.

python benchmarks/memory.py [--shape 30M] [--adapters 100]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import psutil
import torch
from models import make_adapters, make_base
from timing import environment, table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="30M")
    parser.add_argument("--adapters", type=int, default=100)
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as name:
        base = make_base(Path(name) / "base", options.shape)
        folders = make_adapters(base, Path(name) / "adapters", options.adapters)
        print(f"\n{options.shape} Llama shape, rank 16 on all linears\n")
        print(table(measure(base, folders)))


def measure(base: Path, folders: list[Path]) -> list[dict[str, object]]:
    """The backbone, then the adapters in its slots and on its host, beside as many models."""
    from lorary.adapters import Backbone

    count = len(folders)
    backbone = Backbone.from_pretrained(str(base), slots=count)
    backbone.load(folders[0])
    backbone.unload(folders[0].name)  # the layers are in place, and what a first load imports is in memory
    before = _held(backbone.device)
    for folder in folders:
        backbone.load(folder)
    grown = _held(backbone.device) - before
    stats = backbone.stats()
    on_disk = sum((folder / "adapter_model.safetensors").stat().st_size for folder in folders)
    models = (count + 1) * stats.backbone_bytes
    together = stats.backbone_bytes + stats.arena_bytes

    def row(what: str, number: float) -> dict[str, object]:
        return {"what": what, "MB": f"{number / 1e6:,.1f}"}

    return [
        row("the backbone", stats.backbone_bytes),
        row(f"the files of {count} adapters", on_disk),
        row(f"their slots, by stats() ({stats.slot_bytes / 1e6:.2f} MB each)", stats.arena_bytes),
        row(f"what the process grew by, loading {count} (slots were there; host copies are in it)", grown),
        row(f"one backbone and {count} adapters in slots", together),
        row(f"{count} models and the bare one", models),
    ]


def _held(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


if __name__ == "__main__":
    main()
