"""What LoRA and QLoRA reach beside full fine-tuning, on any data laid out as a folder with train.jsonl and test.jsonl.

    python benchmarks/quality.py ../data --rows 2000 --seeds 3
    python benchmarks/quality.py ../data/sms_spam --methods full,lora --base some/encoder

A folder is one data set, or holds several. Its columns say the task: text and label, tokens and tags, or context,
question and answers. Every contender gets the same rows. LoRA and QLoRA are `lorary train` through its Python call, at
the task's default rank and learning rate, with early stopping off; full fine-tuning is a plain transformers script at a
tenth of that rate ("LoRA Without Regret", 2025). `--adapter-epochs` lets adapters take more steps. One line for each
seed, then the mean and spread of each contender, its share of full fine-tuning's metric, and the paired bootstrap of
the difference on the same held-out rows, over all seeds.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timing import environment

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.training import Recipe, train
from lorary.training.data import load_data
from lorary.training.experiments.bootstrap import paired_bootstrap
from lorary.training.model import load_for
from lorary.training.progress import quiet_libraries
from lorary.training.tasks import make_task


@dataclass(frozen=True)
class Result:
    """One contender's answers with one seed: the task's metric, and each row's answer for the bootstrap."""

    metric: float
    outcomes: list[Any]
    seconds: float
    trainable: int


def task_of(folder: Path) -> str | None:
    """The task that a folder's columns are for; None where this script has none for them."""
    with (folder / "train.jsonl").open(encoding="utf-8") as file:
        columns = set(json.loads(file.readline()))
    forms = {
        "text-classification": {"text", "label"},
        "token-classification": {"tokens", "tags"},
        "question-answering": {"context", "question", "answers"},
    }
    return next((task for task, needed in forms.items() if needed <= columns), None)


def sample(source: Path, target: Path, most: int) -> None:
    """The same ``most`` rows for every contender and seed."""
    lines = [line for line in source.read_text(encoding="utf-8").split("\n") if line.strip()]
    chosen = random.Random(0).sample(lines, most) if 0 < most < len(lines) else lines
    target.write_text("\n".join(chosen) + "\n", encoding="utf-8")


def recipe_for(folder: Path, task: str, method: str, seed: int, options: argparse.Namespace, output: Path) -> Recipe:
    """The recipe of one run; full fine-tuning takes its data, head and settings from one, too."""
    flags = {
        "name": "quality", "domain": "benchmark", "task": task, "base": options.base,
        "method": "qlora" if method == "qlora" else "lora",
        "data.train": str(folder / "train.jsonl"), "data.test": str(folder / "test.jsonl"),
        "training.epochs": options.epochs if method == "full" else options.adapter_epochs or options.epochs,
        "training.seed": seed, "training.early_stopping": 0, "report.write": False, "output": str(output),
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
    data = load_data(recipe)
    task = make_task(recipe, data.labels, data.problem_type)
    with quiet_libraries():
        backbone = Backbone.from_pretrained(recipe.base, quantization=recipe.quantization, slots=1, registry=registry)
        backbone.load(version.reference, "quality")
        rows = task.encode(data.test, backbone.tokenizer, recipe.training.max_length, lambda line: None)
        outcomes = task.through(backbone, "quality", rows)
    return Result(version.metrics["test"][task.main_metric], outcomes, seconds, version.parameters)


def in_full(recipe: Recipe) -> Result:
    """Plain transformers: every weight is trained, with the Trainer's own loop."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    started = time.perf_counter()
    data = load_data(recipe)
    task = make_task(recipe, data.labels, data.problem_type)
    with quiet_libraries(), tempfile.TemporaryDirectory() as scratch:
        base = load_for(task, recipe)
        base.model.requires_grad_(True)
        length = recipe.training.max_length
        rows, test = (task.encode(part, base.tokenizer, length, lambda line: None) for part in (data.train, data.test))
        arguments = TrainingArguments(
            output_dir=scratch, num_train_epochs=recipe.training.epochs, learning_rate=recipe.training.learning_rate,
            per_device_train_batch_size=recipe.training.batch_size, warmup_steps=recipe.training.warmup,
            seed=recipe.training.seed, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=10**6,
            remove_unused_columns=False, use_cpu=not torch.cuda.is_available(), dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(
            model=base.model, args=arguments, train_dataset=list(rows.features),
            data_collator=task.collator(base.tokenizer),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        outcomes = task.outcomes(base.model, test, base.tokenizer, recipe.training.batch_size)
    metric = task.metrics(outcomes, test.golds)[task.main_metric]
    trainable = sum(parameter.numel() for parameter in base.model.parameters())
    return Result(metric, outcomes, time.perf_counter() - started, trainable)


def judge(folder: Path, task_name: str, options: argparse.Namespace) -> None:
    """Run and print one data set."""
    print(f"\n{folder.name}: {task_name}", flush=True)
    results: dict[str, list[Result]] = {method: [] for method in options.methods}
    with tempfile.TemporaryDirectory() as scratch:
        rows = Path(scratch)
        sample(folder / "train.jsonl", rows / "train.jsonl", options.rows)
        sample(folder / "test.jsonl", rows / "test.jsonl", options.test_rows)
        for seed in range(options.seeds):
            for method in options.methods:
                recipe = recipe_for(rows, task_name, method, seed, options, rows / f"{method}-{seed}")
                found = in_full(recipe) if method == "full" else with_adapter(recipe, Registry(rows / "registry.db"))
                results[method].append(found)
                print(f"  seed {seed} {method:6} {found.metric:.4f}  {found.seconds:6.1f} s", flush=True)
        recipe = recipe_for(rows, task_name, "lora", 0, options, rows / "last")
        data = load_data(recipe)
        task = make_task(recipe, data.labels, data.problem_type)
        with quiet_libraries():
            tokenizer = load_for(task, recipe).tokenizer
        golds = task.encode(data.test, tokenizer, recipe.training.max_length, lambda line: None).golds
    report(task, golds, results, options)


def report(task: Any, golds: Sequence[Any], results: dict[str, list[Result]], options: argparse.Namespace) -> None:
    """Mean, spread, share of full fine-tuning, and the bootstrap against the contender before."""
    full = statistics.mean(result.metric for result in results["full"]) if "full" in results else None
    print(f"  {'':6} {task.main_metric:>8} {'spread':>8} {'of full':>8}   difference, 95% of resamples   trained")
    before: str | None = None
    for method in options.methods:
        metrics = [result.metric for result in results[method]]
        mean = statistics.mean(metrics)
        spread = statistics.stdev(metrics) if len(metrics) > 1 else 0.0
        share = f"{mean / full:8.1%}" if full else " " * 8
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


def main() -> None:
    """Read the command line and judge each data set."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("data", type=Path, nargs="+", help="a folder with train.jsonl and test.jsonl, or one of such")
    parser.add_argument("--base", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--methods", default="full,lora,qlora", type=lambda text: text.split(","))
    parser.add_argument("--rows", type=int, default=2000, help="training rows at most; 0: all")
    parser.add_argument("--test-rows", type=int, default=1000, help="held-out rows at most; 0: all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--adapter-epochs", type=float, help="for LoRA and QLoRA; default: as many")
    parser.add_argument("--rank", type=int, help="default: the task's")
    parser.add_argument("--rate", type=float, help="learning rate of LoRA and QLoRA; default: the task's")
    parser.add_argument("--full-rate", type=float, help="learning rate of full fine-tuning; default: a tenth of LoRA's")
    parser.add_argument("--length", type=int, help="tokens of a row at most; default: the task's")
    options = parser.parse_args()
    print(environment())
    print(f"{options.base}: at most {options.rows} rows, {options.epochs:g} epochs, the rest by the task's defaults")
    found = 0
    for folder in options.data:
        candidates = [folder] if (folder / "train.jsonl").is_file() else sorted(folder.glob("*/"))
        for candidate in candidates:
            if (candidate / "train.jsonl").is_file() and (task := task_of(candidate)):
                judge(candidate, task, options)
                found += 1
    if not found:
        sys.exit("no folder with train.jsonl and test.jsonl for a task of this script")


if __name__ == "__main__":
    main()
