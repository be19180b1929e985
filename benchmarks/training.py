"""lorary's training beside a hand-written PEFT and Trainer script, on the same rows, settings and seed.

    python benchmarks/training.py [--data ../data] [--repetitions 5] [--steps 40]

Two bases: the embedded encoder on text classification, and a random Llama of 10M parameters on prompts and completions.
The contenders take turns: the plain script, `fit`, and `fit` with rows grouped by length (classification) or sharing
sequences (generation). Seconds are those of the training loop alone, loading and saving left out; ratios are to the
plain script's, run by run: median, least and greatest. Tokens a second don't count padding. Without --data the rows are
made up, their lengths drawn from a log-normal distribution.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from models import LINEARS, make_base, words
from timing import environment

from lorary.training import Recipe
from lorary.training.data import load_data
from lorary.training.fitting.fit import fit
from lorary.training.interrupt import Stops
from lorary.training.prepare import Prepared, prepare
from lorary.training.progress import Reporter, quiet_libraries

ROWS, BATCH, RANK, LENGTH = 1000, 16, 8, 128


def classification_rows(folder: Path, data: Path | None) -> None:
    """``rows.jsonl`` of texts with a label: those of a folder of data, or made-up words."""
    if data is not None:
        lines = (data / "sms_spam" / "train.jsonl").read_text(encoding="utf-8").split("\n")[:ROWS]
        (folder / "rows.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        return
    rows = [{"text": text, "label": str(index % 2)} for index, text in enumerate(_texts(ROWS))]
    _write(folder, rows)


def generation_rows(folder: Path) -> None:
    """``rows.jsonl`` of prompts and completions of made-up words that the made-up base's tokenizer knows."""
    texts = _texts(2 * ROWS)
    _write(folder, [{"prompt": a, "completion": b} for a, b in zip(texts[::2], texts[1::2], strict=True)])


def _texts(count: int) -> list[str]:
    generator, known = random.Random(0), words(1000)
    return [" ".join(generator.choices(known, k=2 + int(generator.lognormvariate(2.5, 0.8)))) for _ in range(count)]


def _write(folder: Path, rows: list[dict[str, str]]) -> None:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def recipe_of(folder: Path, task: str, base: str, steps: int, **settings: Any) -> Recipe:
    """The recipe of every contender."""
    return Recipe.from_flags(
        {
            "name": "speed", "domain": "benchmark", "task": task, "base": base, "output": str(folder / "out"),
            "data.train": str(folder / "rows.jsonl"), "data.test_size": 0.1, "training.max_steps": steps,
            "training.batch_size": BATCH, "training.max_length": LENGTH, "training.early_stopping": 0,
            "training.warmup": 0.0, "lora.rank": RANK, "lora.dropout": 0.05, **settings,
        }
    )  # fmt: skip


def lorary_seconds(recipe: Recipe) -> tuple[float, int]:
    """Seconds of lorary's loop, and the rows' tokens that it went through."""
    prepared = prepare(recipe, load_data(recipe), Reporter())
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        fit(
            prepared.model, prepared.base.tokenizer, prepared.task, prepared.train, None, recipe,
            folder=Path(scratch), reporter=Reporter(), stops=Stops(),
        )  # fmt: skip
        return time.perf_counter() - started, _tokens(prepared)


def script_seconds(recipe: Recipe) -> tuple[float, int]:
    """Seconds of a script's loop as PEFT's documentation writes it; rows are tokenized as lorary does."""
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        DataCollatorForSeq2Seq,
        DataCollatorWithPadding,
        PrinterCallback,
        Trainer,
        TrainingArguments,
    )

    prepared = prepare(recipe, load_data(recipe), Reporter())
    base, tokenizer = prepared.base.identity.id, prepared.base.tokenizer
    if recipe.task == "text-classification":
        path = prepared.base.model.config._name_or_path
        model = AutoModelForSequenceClassification.from_pretrained(path, num_labels=2)
        config = LoraConfig(task_type="SEQ_CLS", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules=_BERT)
        collator: Any = DataCollatorWithPadding(tokenizer)
    else:
        model = AutoModelForCausalLM.from_pretrained(base)
        config = LoraConfig(
            task_type="CAUSAL_LM", r=RANK, lora_alpha=2 * RANK, lora_dropout=0.05, target_modules=LINEARS
        )
        collator = DataCollatorForSeq2Seq(tokenizer)
    with tempfile.TemporaryDirectory() as scratch:
        training = recipe.training
        arguments = TrainingArguments(
            output_dir=scratch, max_steps=training.max_steps, per_device_train_batch_size=training.batch_size,
            learning_rate=training.learning_rate, seed=training.seed, report_to="none", save_strategy="no",
            disable_tqdm=True, use_cpu=not torch.cuda.is_available(), remove_unused_columns=False,
            dataloader_pin_memory=False,
        )  # fmt: skip
        rows = [dict(feature) for feature in prepared.train.features]
        trainer = Trainer(
            model=get_peft_model(model, config), args=arguments, train_dataset=rows, data_collator=collator
        )
        trainer.remove_callback(PrinterCallback)
        started = time.perf_counter()
        trainer.train()
        return time.perf_counter() - started, _tokens(prepared)


_BERT = r".*encoder.*\.(query|key|value|dense)"


def _tokens(prepared: Prepared) -> int:
    lengths = [len(feature["input_ids"]) for feature in prepared.train.features]
    steps = prepared.recipe.training.max_steps
    assert steps is not None  # the recipes here say so
    return int(steps * BATCH * statistics.mean(lengths))


def table(title: str, contenders: dict[str, Callable[[], tuple[float, int]]], repetitions: int) -> None:
    """Run the contenders in turn and print their medians."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    tokens = 0
    for repetition in range(repetitions + 1):  # the first one warms up
        for name, run in contenders.items():
            taken, tokens = run()
            if repetition:
                seconds[name].append(taken)
    first = next(iter(seconds.values()))
    print(f"\n{title}\n{'':34} {'seconds':>8}  {'ratio':24} tokens a second")
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, first, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"{name:34} {statistics.median(own):8.2f}  {ratio:24} {tokens / statistics.median(own):,.0f}", flush=True)


def main() -> None:
    """Read the command line and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, help="a folder that holds sms_spam/train.jsonl")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    print(environment())
    with tempfile.TemporaryDirectory() as scratch, quiet_libraries():
        folder, base = Path(scratch), Path(scratch) / "base"
        classification_rows(folder, options.data)

        def encoder(**settings: Any) -> Recipe:
            name = "sentence-transformers/all-MiniLM-L6-v2"
            return recipe_of(folder, "text-classification", name, options.steps, **settings)

        table(
            f"encoder, text classification, {options.steps} steps of {BATCH} rows",
            {
                "plain PEFT and Trainer": lambda: script_seconds(encoder()),
                "lorary": lambda: lorary_seconds(encoder()),
                "lorary, grouped by length": lambda: lorary_seconds(encoder(**{"training.group_by_length": True})),
            },
            options.repetitions,
        )
        generation_rows(folder)
        make_base(base, "10M")

        def llama(**settings: Any) -> Recipe:
            settings = {"prompt.template": "{prompt} ", **settings}
            return recipe_of(folder, "text-generation", str(base), options.steps, **settings)

        table(
            f"10M Llama, prompts and completions, {options.steps} steps of {BATCH} rows",
            {
                "plain PEFT and Trainer": lambda: script_seconds(llama()),
                "lorary, padded": lambda: lorary_seconds(llama(**{"training.packing": False})),
                "lorary, rows share sequences": lambda: lorary_seconds(llama()),
            },
            options.repetitions,
        )


if __name__ == "__main__":
    main()
