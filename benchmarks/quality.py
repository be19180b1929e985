"""What LoRA and QLoRA reach beside full fine-tuning, on any data laid out as a folder with train.jsonl and test.jsonl.

    python benchmarks/quality.py ../data --rows 2000 --seeds 3 --generator some/language-model
    python benchmarks/quality.py ../data/sms_spam --methods full,lora --base some/encoder

A folder is one data set, or holds several. Its columns say the task (``FORMS``); a folder without a task, or without
a base for it, is told and left out. Every contender gets the same rows, without those that lack a value. LoRA and
QLoRA are `lorary train` through its Python call, at the task's default rank and learning rate, with early stopping
off; full fine-tuning is transformers' (of preference pairs TRL's) trainer at a tenth of that rate ("LoRA Without
Regret", 2025). `--adapter-epochs` lets adapters take more steps. One line for each seed; then the mean and spread of
each contender, its share of full fine-tuning's metric (the other way round for a loss, so that more is better), and
the paired bootstrap of the difference on the same held-out rows, over all seeds; beside what the untrained base and
the task's baseline reach.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from full_tuning import prepare_bare, tune_all
from timing import environment

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.errors import LoraryError
from lorary.hub.metrics import lower_is_better
from lorary.training import Recipe, train
from lorary.training.experiments.bootstrap import paired_bootstrap
from lorary.training.progress import quiet_libraries

COLUMNS = {
    "text": (
        "text", "dialogue", "document", "article", "sentence1", "premise", "anchor", "sentence", "question1", "query",
        "review", "content",
    ),
    "text_pair": ("text_pair", "sentence2", "hypothesis", "question2"),
    "label": ("label", "labels", "category", "intent", "sentiment", "is_duplicate"),
    "tokens": ("tokens", "words"),
    "tags": ("tags", "ner_tags"),
    "prompt": ("prompt", "instruction", "question"),
    "input": ("input", "context"),
    "completion": ("completion", "response", "output", "answer"),
    "messages": ("messages", "conversations"),
    "summary": ("summary", "highlights"),
    **{role: (role,) for role in (
        "question", "context", "answers", "chosen", "rejected", "source", "target", "positive", "negative", "score",
    )},
}  # fmt: skip
"""The columns that may play a role, the likeliest first."""

FORMS: tuple[tuple[str, str], ...] = (
    ("token-classification", "tokens tags"),
    ("question-answering", "question context answers"),
    ("text-generation", "prompt chosen rejected"),
    ("text-generation", "chosen rejected"),
    ("text-generation", "messages"),
    ("text-generation", "prompt input completion"),
    ("text-generation", "prompt completion"),
    ("translation", "source target"),
    ("summarization", "text summary"),
    ("feature-extraction", "text positive negative"),
    ("feature-extraction", "text positive"),
    ("feature-extraction", "text text_pair score"),
    ("text-classification", "text text_pair label"),
    ("text-classification", "text label"),
    ("text-generation", "text"),
)
"""Tasks with the roles that say so; the first form that a data set's columns have is its own. Plain text is cut into
blocks (strategy ``continual``)."""

FILES = ("train.jsonl", "test.jsonl")
GENERATING = {"text-generation", "translation", "summarization"}


@dataclass(frozen=True)
class DataSet:
    """A folder of rows, the task that its columns say, and the column of each role."""

    folder: Path
    task: str
    columns: Mapping[str, str]

    @classmethod
    def of(cls, folder: Path) -> DataSet | None:
        """What a folder holds; None where its columns say no task."""
        with (folder / "train.jsonl").open(encoding="utf-8") as file:
            row = json.loads(file.readline())
        there = {name: name for name in row} | _languages(row)
        found = {role: next((there[name] for name in names if name in there), None) for role, names in COLUMNS.items()}
        for task, roles in FORMS:
            columns = {role: name for role in roles.split() if (name := found[role])}
            if len(columns) == len(roles.split()):
                return cls(folder, task, columns)
        return None

    @property
    def labels(self) -> list[str] | None:
        """Every label of the folder's rows, of which a sample may lack some; None where they are neither names nor
        whole numbers, or may be 0 and 1 for each label."""
        role = "tags" if self.task == "token-classification" else "label"
        if role not in self.columns:
            return None
        found: set[Any] = set()
        listed = False
        for name in FILES:
            for line in (self.folder / name).read_text(encoding="utf-8").split("\n"):
                value = json.loads(line).get(self.columns[role]) if line.strip() else None
                listed = listed or isinstance(value, list)
                found.update(value if isinstance(value, list) else [] if value is None else [value])
        if found and all(type(label) is int for label in found) and not (listed and found <= {0, 1}):
            return [str(label) for label in sorted(found)]
        return sorted(found) if found and all(isinstance(label, str) for label in found) else None


def _languages(row: Mapping[str, Any]) -> dict[str, str]:
    """The columns of source and target, where a row's texts stand under their languages' names within one column."""
    return dict(zip(("source", "target"), (f"translation.{name}" for name in row.get("translation", ())), strict=False))


@dataclass(frozen=True)
class Result:
    """One contender's answers with one seed: the task's metric, and each row's answer for the bootstrap."""

    metric: float
    outcomes: list[Any]
    seconds: float
    trainable: int
    baselines: Mapping[str, float]


def sample(source: Path, target: Path, most: int) -> None:
    """The same ``most`` rows for every contender and seed."""
    lines = [line for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
    chosen = random.Random(0).sample(lines, most) if 0 < most < len(lines) else lines
    target.write_text("\n".join(chosen) + "\n", encoding="utf-8")


def recipe_for(
    data: DataSet, labels: list[str] | None, rows: Path, method: str, seed: int, options: argparse.Namespace
) -> Recipe:
    """The recipe of one run; full fine-tuning takes its data, head and settings from one, too."""
    flags = {
        "name": "quality", "domain": "benchmark", "task": data.task, "method": "qlora" if method == "qlora" else "lora",
        "base": options.generator if data.task in GENERATING else options.base,
        "strategy": "continual" if (data.task, [*data.columns]) == ("text-generation", ["text"]) else None,
        "data.train": str(rows / "train.jsonl"), "data.test": str(rows / "test.jsonl"),
        **{f"data.columns.{role}": column for role, column in data.columns.items()},
        "data.labels": labels, "data.incomplete": "drop",
        "training.epochs": options.epochs if method == "full" else options.adapter_epochs or options.epochs,
        "training.seed": seed, "training.early_stopping": 0, "report.write": False,
        "output": str(rows / f"{method}-{seed}"),
        "lora.rank": options.rank, "training.learning_rate": options.rate, "training.max_length": options.length,
    }  # fmt: skip
    recipe = Recipe.from_flags({flag: value for flag, value in flags.items() if value is not None})
    if method != "full":
        return recipe
    rate = options.full_rate or recipe.training.learning_rate / 10
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": rate})})


def with_adapter(recipe: Recipe, registry: Registry) -> Result:
    """Train through lorary, then answer the held-out rows through its loader."""
    started = time.perf_counter()
    version = train(recipe, registry)
    seconds = time.perf_counter() - started
    bare = prepare_bare(recipe)
    with quiet_libraries():
        backbone = Backbone.from_pretrained(recipe.base, quantization=recipe.quantization, slots=1, registry=registry)
        backbone.load(version.reference, "quality")
        outcomes = bare.task.through(backbone, "quality", bare.test)
    name = bare.task.main_metric
    baselines = {split: values[name] for split, values in version.metrics.items() if split != "test"}
    return Result(bare.task.metrics(outcomes, bare.test.golds)[name], outcomes, seconds, version.parameters, baselines)


def in_full(recipe: Recipe) -> Result:
    """Plain transformers or TRL: every weight is trained, with the trainer's own loop."""
    started = time.perf_counter()
    bare = prepare_bare(recipe)
    with quiet_libraries():
        outcomes = tune_all(bare)
    metric = bare.task.metrics(outcomes, bare.test.golds)[bare.task.main_metric]
    trainable = sum(parameter.numel() for parameter in bare.model.parameters())
    return Result(metric, outcomes, time.perf_counter() - started, trainable, {})


def data_sets(folder: Path, options: argparse.Namespace) -> Iterator[DataSet]:
    """What can be measured in a folder, or in those that it holds; says what can't."""
    for candidate in [folder] if (folder / "train.jsonl").is_file() else sorted(folder.glob("*/")):
        if not all((candidate / name).is_file() for name in FILES):
            continue
        data = DataSet.of(candidate)
        if data is None:
            print(f"{candidate.name} is left out: its columns say no task")
        elif data.task in GENERATING and not options.generator:
            print(f"{candidate.name} is left out: {data.task} needs a --generator")
        else:
            yield data


def judge(data: DataSet, options: argparse.Namespace) -> None:
    """Run and print one data set."""
    print(f"\n{data.folder.name}: {data.task} ({', '.join(data.columns.values())})", flush=True)
    results: dict[str, list[Result]] = {method: [] for method in options.methods}
    labels = data.labels
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch)
        for name, most in zip(FILES, (options.rows, options.test_rows), strict=True):
            sample(data.folder / name, rows / name, most)
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for method in options.methods:
                recipe = recipe_for(data, labels, rows, method, seed, options)
                found = in_full(recipe) if method == "full" else with_adapter(recipe, Registry(rows / "registry.db"))
                results[method].append(found)
                print(f"  seed {seed} {method:6} {found.metric:.4f}  {found.seconds:6.1f} s", flush=True)
        bare = prepare_bare(recipe)
    report(bare.task, bare.test.golds, results, options)


def report(task: Any, golds: Sequence[Any], results: dict[str, list[Result]], options: argparse.Namespace) -> None:
    """Mean, spread, share of full fine-tuning, and the bootstrap against the contender before."""
    full = statistics.mean(result.metric for result in results["full"]) if "full" in results else None
    if lower_is_better(task.main_metric):
        print(f"  {task.main_metric}: less is better, so a difference below 0 is a gain")
    print(f"  {'':6} {task.main_metric:>8} {'spread':>8} {'of full':>8}   difference, 95% of resamples   trained")
    before: str | None = None
    for method in options.methods:
        metrics = [result.metric for result in results[method]]
        mean = statistics.mean(metrics)
        spread = statistics.stdev(metrics) if len(metrics) > 1 else 0.0
        share = " " * 8
        if full:
            share = f"{full / mean if lower_is_better(task.main_metric) else mean / full:8.1%}"
        against = ""
        if before is not None:
            ours, theirs = ([result.outcomes for result in results[name]] for name in (method, before))
            found = paired_bootstrap(task, golds, ours, theirs)
            against = f"{found.low:+.4f} to {found.high:+.4f} against {before}"
        print(
            f"  {method:6} {mean:8.4f} {spread:8.4f} {share}   {against:30} {results[method][0].trainable:,}",
            flush=True,
        )
        before = method
    for name in dict.fromkeys(name for runs in results.values() for name in runs[0].baselines):
        runs = next(runs for runs in results.values() if name in runs[0].baselines)
        print(f"  {name}: {statistics.mean(result.baselines[name] for result in runs):.4f}", flush=True)


def main() -> None:
    """Read the command line and judge each data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="a folder with train.jsonl and test.jsonl, or one of such")
    parser.add_argument("--base", default="sentence-transformers/all-MiniLM-L6-v2", help="of tasks that read")
    parser.add_argument("--generator", help="the base of tasks that write: a causal model, or an encoder-decoder")
    parser.add_argument("--methods", default="full,lora,qlora", type=lambda text: text.split(","))
    parser.add_argument("--rows", type=int, default=2000, help="training rows at most; 0: all")
    parser.add_argument("--test-rows", type=int, default=1000, help="held-out rows at most; 0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--adapter-epochs", type=float, help="for LoRA and QLoRA; default: as many")
    parser.add_argument("--rank", type=int, help="default: the task's")
    parser.add_argument("--rate", type=float, help="learning rate of LoRA and QLoRA; default: the task's")
    parser.add_argument("--full-rate", type=float, help="learning rate of full fine-tuning; default: a tenth of LoRA's")
    parser.add_argument("--length", type=int, help="tokens of a row at most; default: the task's")
    options = parser.parse_args()
    print(environment())
    print(f"{options.rows or 'all'} rows, {options.epochs:g} epochs, the rest by the task's defaults")
    print(f"tasks that read: {options.base}; that write: {options.generator or 'left out (--generator)'}")
    found = [own for folder in options.data for own in data_sets(folder, options)]
    if not found:
        sys.exit("no folder with train.jsonl and test.jsonl for a task of this script")
    failed = []
    for data in found:
        try:
            judge(data, options)
        except LoraryError as error:  # one data set's trouble is no reason to lose the others
            failed.append(data.folder.name)
            print(f"  {error}", flush=True)
    if failed:
        sys.exit(f"not measured: {', '.join(failed)}")


if __name__ == "__main__":
    main()
