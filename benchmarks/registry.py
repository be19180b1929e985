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
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorary.hub import Registry
from lorary.hub.finding.search import Filter
from lorary.hub.manifest import TASKS
from lorary.hub.tables.database import writing

if TYPE_CHECKING:
    from sqlite_utils import Database

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
        print("| query | fit | in code, ms (min) | command, ms (min) | its processor time, ms |")
        print("| --- | --- | --- | --- | --- |")
        for words, query in cases(registry):
            fitting = query()
            inside = seconds(query, options.repetitions)
            before = processor_time()
            outside = seconds(partial(command, registry, words), options.repetitions)
            used = (processor_time() - before) / (options.repetitions + 1)
            told = " | ".join(
                f"{statistics.median(runs) * 1e3:.0f} ({min(runs) * 1e3:.0f})" for runs in (inside, outside)
            )
            shown = " ".join(f'"{word}"' if set(word) & set(" <>") else word for word in words)
            print(f"| `lorary {shown}` | {fitting:,} | {told} | {used * 1e3:.0f} |", flush=True)
        for form in ("--json", "--csv"):
            print(f"`lorary list --limit 0 {form}`: {all_of_it(registry, form)}", flush=True)


def fill(registry: Registry, count: int) -> None:
    """Insert ``count`` versions; the schema's triggers do the rest, as for anybody else's rows."""
    source = random.Random(0)
    with writing(registry.path) as db:
        db.execute("PRAGMA cache_size = -500000")
        _insert(db, "bases (fingerprint, id)", [(_fingerprint(base), base) for base in BASES])
        _insert(db, "adapters (id, name, domain, task, next_number)", list(_adapters(count)))
        tables = (
            "versions (id, adapter_id, number, digest, base_id, base_fingerprint, method, quantization, rank, "
            "parameters, size_bytes, created_at, strategy, manifest, labels)",
            "metrics (version_id, split, name, value)",
            "tags (version_id, tag)",
            "aliases (adapter_id, name, version_id)",
            "parents (version_id, parent, parent_id)",
        )
        for version_id in range(1, count + 1):
            for table, rows in zip(tables, _rows(version_id, source), strict=True):
                _insert(db, table, rows)


def _insert(db: Database, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        marks = ", ".join("?" * len(rows[0]))
        db.conn.executemany(f"INSERT INTO {table} VALUES ({marks})", rows)


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
    base, method = random.Random(f"base of {adapter}").choice(BASES), source.choice(("lora", "qlora", "dora", "rslora"))
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


def cases(registry: Registry) -> Iterator[tuple[list[str], Callable[[], int]]]:
    """The words of each command, and the same in code, which gives the number of versions that fit."""
    found = registry.find(limit=1, sort="created")[0]
    cell: dict[str, Any] = {"domain": "legal", "task": "summarization"}
    base = "mirror/MiniLM-L6-v2"
    searches: list[tuple[Filter, str]] = [
        (Filter(), "name"),
        (Filter(), "created"),
        (Filter(), "loss"),
        (Filter(domain="legal"), "name"),
        (Filter(domain="legal"), "f1"),
        (Filter(**cell), "rougeL"),
        (Filter(method="qlora"), "loss"),
        (Filter(strategy="fine-tune"), "parameters"),
        (Filter(tag="news"), "created"),
        (Filter(alias="prod"), "name"),
        (Filter(base=base), "f1"),
        (Filter(**cell, base=base), "rougeL"),
        (Filter(tag="news", method="lora", base=base), "name"),
        (Filter(where=("f1>=0.9",)), "name"),
        (Filter(where=("f1>=0.9", "loss<0.5")), "f1"),
        (Filter(where=("loss>=0.1",)), "name"),
        (Filter(text="legal summ"), "name"),
        (Filter(text="llama"), "created"),
        (Filter(text="positive"), "name"),
        (Filter(text="nothing"), "name"),
        (Filter(ancestor=f"{found.name}@1"), "created"),
    ]
    for wanted, sort in searches:
        yield _words(wanted, sort), partial(_search, registry, wanted, sort)
    yield ["domains"], lambda: len(registry.overview())
    yield ["tasks", "--metric", "loss"], lambda: len(registry.overview("loss"))
    for metric, options in (
        ("loss", {}),
        ("rougeL", cell),
        ("rougeL", {**cell, "base": BASES[1]}),
        ("f1", {"base": base}),
    ):
        words = [word for name, value in options.items() for word in (f"--{name}", value)]
        yield ["best", "--metric", metric, *words], partial(_best, registry, metric, options)
    for reference in (found.name, f"{found.name}@3", f"{found.name}@prod"):
        yield ["show", reference], partial(_resolve, registry, reference)


def _words(wanted: Filter, sort: str) -> list[str]:
    flags = {"text": "search", "ancestor": "from"}
    words = ["list"]
    for name, value in vars(wanted).items():
        for one in value if isinstance(value, tuple) else [value] if value else []:
            words += [f"--{flags.get(name, name)}", one]
    return words + (["--sort", sort] if sort != "name" else [])


def _search(registry: Registry, wanted: Filter, sort: str) -> int:
    found = registry.search(wanted, sort=sort, limit=50)
    assert len(list(found)) == len(found)
    return found.total


def _best(registry: Registry, metric: str, options: dict[str, Any]) -> int:
    return registry.choose(Filter(**options), metric=metric).among


def _resolve(registry: Registry, reference: str) -> int:
    return len([registry.resolve(reference)])


def seconds(run: Callable[[], object], repetitions: int) -> list[float]:
    """What each of the repetitions took, after one that warms the disk's cache."""
    taken = []
    for _ in range(repetitions + 1):
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    return taken[1:]


def processor_time() -> float:
    """The seconds that this process's finished children have computed: a busy machine adds little to them."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def command(registry: Registry, words: Sequence[str]) -> None:
    """Run ``lorary`` in a process of its own, as a shell would."""
    subprocess.run(
        [sys.executable, "-m", "lorary.hub.cli", *words],
        env={**os.environ, "LORARY_REGISTRY": str(registry.path)},
        stdout=subprocess.DEVNULL,
        check=True,
    )


# In a process that holds nothing itself: a child's peak memory counts from what its parent had when it was made.
ALONE = """
import resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL, check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(f"{time.perf_counter() - started:.0f} s, {used.ru_utime + used.ru_stime:.0f} s of processor time, "
      f"{used.ru_maxrss / 1e3:.0f} MB")
"""


def all_of_it(registry: Registry, form: str) -> str:
    """What it takes to write out the whole catalogue once."""
    words = [sys.executable, "-m", "lorary.hub.cli", "list", "--limit", "0", form, "--registry", str(registry.path)]
    return subprocess.run(
        [sys.executable, "-c", ALONE, *words], capture_output=True, text=True, check=True
    ).stdout.strip()


if __name__ == "__main__":
    main()
