"""Is the start that `lorary advise` prefers the best one after training? On data in folders with train and test.jsonl.

    python benchmarks/advice.py ../data/reviews ../data/spam --targets ../data/reviews examples/email-spam --by source

Each source is trained first and makes the catalogue; of a folder that has the column ``--by``, each of its values is a
data set of its own. Then each target's few rows are advised on, and trained from every start that was measured, with
several seeds. A data set is no source for itself: advice leaves versions of the recipe's own name out. One line for
each start: its probe, how it differs from the base's, and the metric after training. At the end, how often the advised
start was the best, and what it won beside the base.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timing import environment

from lorary.hub import Registry
from lorary.training import Recipe, advise, train
from lorary.training.advisor.guess import guess_task

PARTS = ("train", "test")


@dataclass(frozen=True)
class DataSet:
    """Rows by part, under a name."""

    name: str
    rows: Mapping[str, Sequence[Mapping[str, Any]]]

    def sample(self, folder: Path, most: Mapping[str, int], seed: int) -> dict[str, str]:
        """Files of some rows each: the parts' settings of a recipe."""
        folder.mkdir(parents=True, exist_ok=True)
        settings = {}
        for part in PARTS:
            rows = list(self.rows[part])
            random.Random(seed if part == "train" else 0).shuffle(rows)
            file = folder / f"{part}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows[: most[part]]), encoding="utf-8")
            settings[f"data.{part}"] = str(file)
        return settings


def data_sets(folder: Path, column: str | None) -> Iterator[DataSet]:
    """A folder's data set, or one for each value of the column."""
    lines = {part: (folder / f"{part}.jsonl").read_text(encoding="utf-8").split("\n") for part in PARTS}
    rows = {part: [json.loads(line) for line in lines[part] if line.strip()] for part in PARTS}
    values = sorted({row[column] for row in rows["train"]}) if column in rows["train"][0] else [None]
    for value in values:
        name = folder.name if value is None else f"{folder.name}-{value}"
        chosen = {part: [row for row in rows[part] if value is None or row[column] == value] for part in PARTS}
        yield DataSet(name.replace("_", "-"), chosen)


def recipe_for(data: DataSet, settings: Mapping[str, str], base: str, **more: Any) -> Recipe:
    """The task's defaults."""
    task, columns = guess_task(settings["data.train"])
    roles = {f"data.columns.{role}": column for role, column in columns.items()}
    flags = {"name": data.name, "domain": data.name, "task": task, "base": base, "report.write": False}
    return Recipe.from_flags({**flags, **settings, **roles, **more})


def judge(data: DataSet, registry: Registry, scratch: Path, options: argparse.Namespace) -> tuple[bool, float]:
    """Advise on a target and train it from every start; was the advice the best, and what did it win over the base?"""
    settings = data.sample(scratch / data.name, {"train": options.rows, "test": options.test_rows}, seed=0)
    recipe = recipe_for(data, settings, options.base, output=str(scratch / "run"))
    advice = advise(recipe, registry, starts=options.starts)
    chosen = advice.recipe.from_
    print(f"\n{data.name}: {advice.rows} rows, advised: {chosen or 'the base'}", flush=True)
    print(f"  {'start':32} {'probe':>7}  {'beside the base':24} {'trained':>8} {'spread':>7}", flush=True)
    trained: dict[str | None, float] = {}
    for start in advice.starts:
        found = [_train(recipe, start.reference, start.task, seed, registry) for seed in range(options.seeds)]
        trained[start.reference] = statistics.mean(found)
        spread = statistics.stdev(found) if len(found) > 1 else 0.0
        beside = start.against_base
        told = f"{beside.value:+.3f} ({beside.low:+.3f} to {beside.high:+.3f})" if beside else ""
        print(f"  {start.reference or 'the base':32} {start.score:7.3f}  {told:24} {trained[start.reference]:8.4f} "
              f"{spread:7.4f}", flush=True)  # fmt: skip
    best = max(trained, key=lambda one: trained[one])
    return best == chosen, trained[chosen] - trained[None]


def _train(recipe: Recipe, start: str | None, task: str | None, seed: int, registry: Registry) -> float:
    stage = {"strategy": "intermediate"} if task not in (None, recipe.task) else {}
    settings = {"training.seed": seed, "from": start, **stage}
    with tempfile.TemporaryDirectory() as folder:
        version = train(recipe.changed({**settings, "output": f"{folder}/run"}), registry)
    metric = {"text-classification": "f1", "token-classification": "f1"}[recipe.task]
    value = version.metrics["test"][metric]
    registry.remove(version.reference)
    return value


def main() -> None:
    """Read the command line, make the catalogue and judge each target."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", type=Path, nargs="+", help="folders that adapters are trained on first")
    parser.add_argument("--targets", type=Path, nargs="+", required=True, help="folders that are advised on")
    parser.add_argument("--by", help="a column whose values part a folder into data sets")
    parser.add_argument("--base", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--rows", type=int, default=100, help="training rows of a target")
    parser.add_argument("--source-rows", type=int, default=600)
    parser.add_argument("--test-rows", type=int, default=300)
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        registry = Registry(scratch / "registry.db")
        for place in options.sources:
            for data in data_sets(place, options.by):
                most = {"train": options.source_rows, "test": options.test_rows}
                settings = data.sample(scratch / f"source-{data.name}", most, seed=1)
                version = train(recipe_for(data, settings, options.base, output=str(scratch / data.name)), registry)
                print(f"{version.reference}: f1 {version.metrics['test']['f1']:.4f}", flush=True)
        found = [
            judge(data, registry, scratch, options)
            for place in options.targets
            for data in data_sets(place, options.by)
        ]
    right, gain = sum(best for best, _ in found), statistics.mean(gain for _, gain in found)
    print(f"\nThe advised start was the best {right} times of {len(found)}, and {gain:+.4f} to the base on average.")


if __name__ == "__main__":
    main()
