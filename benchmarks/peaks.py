"""How far predicted peaks are from measured ones: short runs on a CPU, each in a process of its own.

    python benchmarks/peaks.py

The encoder is the embedded one, the language model a 30M Llama shape with random weights. Rows fill their length, so
that every batch is the largest.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from models import make_base, words

from lorary.hub import Registry
from lorary.hub.base_files import EMBEDDED_BASE
from lorary.training.recipe import Recipe

CASES = [
    ("text-classification", 4, 128), ("text-classification", 16, 128), ("text-classification", 32, 128),
    ("text-classification", 16, 512), ("token-classification", 16, 128), ("question-answering", 8, 384),
    ("text-generation", 4, 256), ("text-generation", 16, 256),
]  # fmt: skip
"""Task, rows a batch, tokens a row."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="one task's cases")
    options = parser.parse_args()
    print(
        "| task | rows x tokens | predicted, MB | measured, MB | off by |\n| --- | --- | --- | --- | --- |", flush=True
    )
    for task, batch, length in CASES:
        if options.only in (None, task):
            with tempfile.TemporaryDirectory() as folder:
                predicted, measured = peaks(task, batch, length, Path(folder))
            off = predicted / measured - 1
            print(
                f"| {task} | {batch} x {length} | {predicted / 1e6:,.0f} | {measured / 1e6:,.0f} | {off:+.0%} |",
                flush=True,
            )


def peaks(task: str, batch: int, length: int, folder: Path) -> tuple[int, int]:
    """The predicted and the measured peak of a run of two steps, in bytes."""
    base = str(make_base(folder / "base", "30M")) if task == "text-generation" else EMBEDDED_BASE
    flags: dict[str, Any] = {
        "name": "peak", "domain": "any", "task": task, "base": base, "device": "cpu", "report.rows": 0,
        "training.batch_size": batch, "training.max_length": length, "training.max_steps": 2,
        "output": str(folder / "out"),
    }  # fmt: skip
    for part, count in (("train", 2 * batch + 8), ("test", 4)):
        path = folder / f"{part}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows(task, count, length)))
        flags[f"data.{part}"] = str(path)
    (folder / "recipe.yaml").write_text(Recipe.from_flags(flags).to_yaml())
    place = str(folder / "registry.db")
    command = [sys.executable, "-m", "lorary.hub.cli", "train", str(folder / "recipe.yaml"), "--registry", place]
    subprocess.run(command, check=True, capture_output=True)
    manifest = Registry(place).resolve("peak").manifest
    assert manifest is not None  # a training writes one
    told = manifest.provenance
    return int(told["estimate"]["peak_memory_bytes"]), int(told["peak_memory_bytes"])


def rows(task: str, count: int, length: int) -> Iterator[dict[str, Any]]:
    """Rows of at least ``length`` tokens."""
    vocabulary = words(500)
    for number in range(count):
        text = [vocabulary[(7 * number + place) % len(vocabulary)] for place in range(length)]
        if task == "text-classification":
            yield {"text": " ".join(text), "label": ("a", "b")[number % 2]}
        elif task == "token-classification":
            yield {"tokens": text, "tags": [("O", "B-X")[(number + place) % 7 == 0] for place in range(length)]}
        elif task == "question-answering":
            answers = {"text": [text[0]], "answer_start": [0]}
            # A word is two pieces or more of this encoder's.
            yield {"question": "what is first", "context": " ".join(text[: length // 4]), "answers": answers}
        else:
            half = length // 2
            yield {"prompt": " ".join(text[:half]), "completion": " ".join(text[half:])}


if __name__ == "__main__":
    main()
