"""Full fine-tuning: every weight of a base, by transformers' own trainer (of preference pairs TRL's)."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from typing import Any

import torch

from lorary.training.data import load_data
from lorary.training.fitting.own_loss import OwnLossTrainer
from lorary.training.fitting.preference import PreferenceTrainer
from lorary.training.model import load_for
from lorary.training.prepare import encode_parts
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import Recipe
from lorary.training.tasks import Encoded, Task, make_task
from lorary.training.tasks.preference import PreferencePairs


@dataclass(frozen=True)
class Bare:
    """A recipe's task, its base without an adapter, and its rows."""

    recipe: Recipe
    task: Task
    model: Any
    tokenizer: Any
    train: Encoded
    test: Encoded


def prepare_bare(recipe: Recipe) -> Bare:
    """Everything that a run has before an adapter is put on. Raises as :func:`lorary.training.train`."""
    data = load_data(recipe)
    task = make_task(recipe, data.labels, data.problem_type)
    task.begin(data.train)
    with quiet_libraries():
        base = load_for(task, recipe)
        parts, _, _ = encode_parts(recipe, {"train": data.train, "test": data.test}, task, base, Reporter())
        size = recipe.training.batch_size
        train, test = (task.refer(base.model, parts[name], base.tokenizer, size) for name in ("train", "test"))
    return Bare(recipe, task, base.model, base.tokenizer, train, test)


def tune_all(bare: Bare) -> list[Any]:
    """Train every weight of the base, and answer the held-out rows."""
    bare.model.requires_grad_(True)
    with tempfile.TemporaryDirectory() as scratch, bare.task.scaled(bare.model, bare.train, bare.tokenizer):
        trainer_of(bare, scratch).train()
    bare.model.eval()
    return bare.task.outcomes(bare.model, bare.test, bare.tokenizer, bare.recipe.training.batch_size)


def trainer_of(bare: Bare, folder: str) -> Any:
    """The trainer of a task; what it writes goes into ``folder``."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainingArguments
    from trl import DPOConfig

    training = bare.recipe.training
    settings = {
        "output_dir": folder, "num_train_epochs": training.epochs, "learning_rate": training.learning_rate,
        "per_device_train_batch_size": training.batch_size, "warmup_steps": training.warmup,
        "seed": training.seed, "report_to": "none", "save_strategy": "no", "disable_tqdm": True,
        "logging_steps": 10**6, "remove_unused_columns": False, "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }  # fmt: skip
    rows = list(bare.train.features)
    if isinstance(bare.task, PreferencePairs):
        preference = bare.recipe.preference
        config = DPOConfig(**settings, max_length=None, beta=preference.beta or 0.1, loss_type=[preference.loss])
        trainer = PreferenceTrainer(
            model=bare.model, args=config, processing_class=bare.tokenizer, train_dataset=Dataset.from_list(rows)
        )
        trainer.precompute_ref_logps = True  # the rows have them
    else:
        collate = bare.task.collator(bare.tokenizer)
        arguments = TrainingArguments(**settings)
        trainer = OwnLossTrainer(
            bare.task.loss, model=bare.model, args=arguments, data_collator=collate, train_dataset=rows
        )
    trainer.remove_callback(PrinterCallback)
    return trainer
