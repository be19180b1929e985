"""Finding in a large catalogue: each query in the database, and each whole command.

    python benchmarks/registry.py [--versions 100000] [--repetitions 7] [--keep registry.db]

The catalogue is made up: 20 versions of each name, 20 domains, all tasks, 12 bases, three metrics on held-out rows,
tags, aliases, parents, and a manifest of 2 kB. Its rows are inserted directly, since finding needs no files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lorary.hub import Registry
from lorary.hub.database import writing
from lorary.hub.manifest import TASKS

DOMAINS = (
    "finance", "legal", "biomedical", "news", "email", "support", "code", "cardiology", "travel", "insurance",
    "education", "energy", "farming", "law-enforcement", "logistics", "music", "retail", "science", "sports", "weather",
)  # fmt: skip
BASES = tuple(f"{owner}/{model}" for owner in ("org", "mirror") for model in (
    "TinyLlama-1.1B", "Llama-3.1-8B", "distilbert-base-uncased", "MiniLM-L6-v2", "Qwen2.5-7B", "flan-t5-base",
))  # fmt: skip
METRICS = {
    "summarization": ("rougeL", "rouge1", "loss"),
    "translation": ("bleu", "chrf", "loss"),
    "text-generation": ("perplexity", "exact_match", "loss"),
    "fill-mask": ("perplexity", "accuracy", "loss"),
    "feature-extraction": ("spearman", "mrr@10", "loss"),
}
TAGS = ("news", "english", "german", "beta", "nightly")
PER_NAME = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--repetitions", type=int, default=7)
    parser.add_argument("--keep", type=Path, help="make the registry there (or take the one that is), and leave it")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        registry = Registry(options.keep or Path(name) / "registry.db")
        if not registry.path.exists():
            started = time.perf_counter()
            fill(registry, options.versions)
            size = registry.path.stat().st_size / 1e6
            print(f"{options.versions:,} versions inserted in {time.perf_counter() - started:.0f} s, {size:.0f} MB")
        print("| query | rows | in the database, ms | command, ms (min to max) |\n| --- | --- | --- | --- |")
        for words, query in cases():
            found = len(query(registry))
            inside = statistics.median(seconds(lambda query=query: query(registry), options.repetitions)) * 1e3
            outside = [
                1e3 * time for time in seconds(lambda words=words: command(registry, words), options.repetitions)
            ]
            told = f"{statistics.median(outside):.0f} ({min(outside):.0f} to {max(outside):.0f})"
            print(f"| `lorary {' '.join(words)}` | {found} | {inside:.1f} | {told} |", flush=True)


def fill(registry: Registry, count: int) -> None:
    """Insert ``count`` versions; the schema's triggers do the rest, as for anybody else's rows."""
    source = random.Random(0)
    with writing(registry.path) as db:
        db.execute("PRAGMA cache_size = -500000")
        for table, width, rows in (
            ("bases (fingerprint, id)", 2, ((_fingerprint(base), base) for base in BASES)),
            ("adapters (id, name, domain, task, next_number)", 5, _adapters(count)),
        ):
            db.conn.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", rows)
        tables = {
            "versions (id, adapter_id, number, digest, base_id, base_fingerprint, method, quantization, rank, "
            "parameters, size_bytes, created_at, strategy, manifest, labels)": 15,
            "metrics (version_id, split, name, value)": 4,
            "tags (version_id, tag)": 2,
            "aliases (adapter_id, name, version_id)": 3,
            "parents (version_id, parent, parent_id)": 3,
        }
        batches: dict[str, list[tuple[Any, ...]]] = {table: [] for table in tables}
        for version_id in range(1, count + 1):
            for table, row in zip(_order(tables), _rows(version_id, source), strict=True):
                batches[table] += row
            if version_id % 1000 == 0 or version_id == count:
                for table, width in tables.items():
                    db.conn.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * width)})", batches[table])
                    batches[table].clear()


def _order(tables: Sequence[str] | dict[str, int]) -> list[str]:
    return list(tables)


def _adapters(count: int) -> Iterator[tuple[int, str, str, str, int]]:
    for adapter in range(1, (count - 1) // PER_NAME + 2):
        domain, task = _cell(adapter)
        yield adapter, f"{domain}-{task}-{adapter}", domain, task, PER_NAME + 1


def _cell(adapter: int) -> tuple[str, str]:
    source = random.Random(adapter)
    return source.choice(DOMAINS), source.choice(TASKS)


def _fingerprint(base: str) -> str:
    return random.Random(base.rpartition("/")[2]).randbytes(32).hex()  # a mirror has the same


def _rows(version_id: int, source: random.Random) -> Iterator[list[tuple[Any, ...]]]:
    adapter, number = (version_id - 1) // PER_NAME + 1, (version_id - 1) % PER_NAME + 1
    domain, task = _cell(adapter)
    base, method = random.Random(-adapter).choice(BASES), source.choice(("lora", "qlora", "dora", "rslora"))
    created = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(1_700_000_000 + 600 * version_id))
    labels = ("negative", "neutral", "positive")
    manifest = {
        "format": 3, "task": task, "domain": domain, "labels": labels,
        "base": {"id": base, "fingerprint": _fingerprint(base)},
        "provenance": {"recipe": {f"setting_{i}": source.random() for i in range(40)}, "seed": version_id},
    }  # fmt: skip
    yield [(
        version_id, adapter, number, source.randbytes(32).hex(), base, _fingerprint(base) if version_id % 10 else None,
        method, "nf4" if method == "qlora" else "none", source.choice((4, 8, 16, 32)), source.randrange(10**5, 10**8),
        source.randrange(10**5, 10**9), created, "fine-tune" if number > 1 else "direct", json.dumps(manifest),
        ", ".join(labels),
    )]  # fmt: skip
    names = METRICS.get(task, ("f1", "accuracy", "loss"))
    yield [(version_id, split, name, round(source.random(), 4)) for name in names for split in ("test", "untrained")]
    yield [(version_id, tag) for tag in source.sample(TAGS, 2)]
    yield [(adapter, "prod", version_id)] if number == PER_NAME // 2 else []
    parent = f"{domain}-{task}-{adapter}@{number - 1}"
    yield [(version_id, parent, version_id - 1)] if number > 1 else []


def cases() -> Iterator[tuple[list[str], Callable[[Registry], Sequence[object]]]]:
    """The words of each command, and the same in code."""
    yield ["list"], lambda registry: registry.find(limit=50)


def seconds(run: Callable[[], object], repetitions: int) -> list[float]:
    """What each of the repetitions took, after one that warms the disk's cache."""
    taken = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken[1:]


def command(registry: Registry, words: Sequence[str]) -> None:
    """Run ``lorary`` in a process of its own, as a shell would."""
    subprocess.run(
        [sys.executable, "-m", "lorary.hub.cli", *words],
        env={**os.environ, "LORARY_REGISTRY": str(registry.path)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


if __name__ == "__main__":
    main()
