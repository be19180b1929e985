"""The trainer of a run: the settings that all tasks' trainers take, from the recipe."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from lorary.hub.metrics import lower_is_better
from lorary.training.fitting.job import RunSettings
from lorary.training.fitting.memory_fallback import Batching
from lorary.training.fitting.trackers import keep_tensorboard_logs
from lorary.training.precision import base_dtype
from lorary.training.recipe import Recipe
from lorary.training.recipe.steps import steps_per_epoch
from lorary.training.tasks.base import Task
from lorary.training.tasks.rows.encoded import Encoded
from lorary.training.tasks.rows.made_rows import MadeRows


def make_trainer(
    model: Any, tokenizer: Any, task: Task, train: Encoded, validation: Encoded | None, recipe: Recipe, folder: Path,
    batching: Batching | None = None,
) -> Any:  # fmt: skip
    """The task's trainer, ready to train; ``batching`` is the recipe's unless given."""
    training = recipe.training
    batching = batching or Batching.of(training, folder)
    settings = trainer_settings(model, training, batching, folder, validated=validation is not None) | {
        "gradient_checkpointing": training.gradient_checkpointing,
        "train_sampling_strategy": "group_by_length" if training.group_by_length else "random",
        "report_to": list(recipe.report.to) or "none",
        "run_name": recipe.name,
    }
    if validation is not None and training.best_by == "metric":
        settings |= {
            "metric_for_best_model": "eval_metric",
            "greater_is_better": not lower_is_better(task.main_metric),
        }
    sets = {
        "train_dataset": _dataset(train),
        "eval_dataset": _dataset(validation) if validation else None,
    }
    trainer = task.trainer(model, tokenizer, settings, sets)
    settle_warmup(trainer, training, batching)
    keep_tensorboard_logs(trainer, recipe)
    if training.lora_plus_ratio is not None:
        _use_lora_plus(trainer, training.lora_plus_ratio)
    return trainer


def _use_lora_plus(trainer: Any, ratio: float) -> None:
    """Let the trainer make PEFT's LoRA+ optimizer (Hayou et al. 2024) when it makes its own."""
    from peft.optimizers import create_loraplus_optimizer

    def create_optimizer(model: Any = None) -> Any:
        if trainer.optimizer is None:
            optimizer, arguments = trainer.get_optimizer_cls_and_kwargs(trainer.args, model or trainer.model)
            rate = arguments.pop("lr")
            trainer.optimizer = create_loraplus_optimizer(
                model or trainer.model,
                optimizer,
                lr=rate,
                loraplus_lr_ratio=ratio,
                loraplus_weight_decay=trainer.args.weight_decay,
                **arguments,
            )
        return trainer.optimizer

    trainer.create_optimizer = create_optimizer


def _dataset(rows: Encoded) -> Any:
    """Rows as the trainers take them; those that are made when they are asked for stay so."""
    from datasets import Dataset

    return rows.features if isinstance(rows.features, MadeRows) else Dataset.from_list(list(rows.features))


def settle_warmup(trainer: Any, training: RunSettings, batching: Batching) -> None:
    """Let a share of ``trainer``'s steps warm up: none where that isn't one whole step.

    transformers rounds up, and a warm-up's first step has a learning rate of 0: a run of one step would learn nothing.
    """
    rows = len(trainer.train_dataset)  # or sequences, where rows were packed
    per_epoch = steps_per_epoch(rows, batching.size, batching.accumulation, trainer.args.world_size)
    steps = training.max_steps or math.ceil(training.epochs * per_epoch)
    trainer.args.warmup_steps = training.warmup if steps * training.warmup >= 1 else 0.0


def trainer_settings(
    model: Any, training: RunSettings, batching: Batching, folder: Path, *, validated: bool
) -> dict[str, Any]:
    """Arguments of transformers' ``TrainingArguments`` for any run; those of TRL's trainers extend them.

    Args:
        validated: are there validation rows to choose the epoch by?
    """
    dtype = base_dtype(model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    return {
        "output_dir": str(folder),
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": batching.size,
        "per_device_eval_batch_size": batching.size,
        "gradient_accumulation_steps": batching.accumulation,
        "learning_rate": training.learning_rate,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "lr_scheduler_type": training.scheduler,
        "seed": training.seed,
        "data_seed": training.seed,
        "use_cpu": on_cpu,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        # Off, since it would show the last finite loss in place of a NaN.
        "logging_nan_inf_filter": False,
        "eval_strategy": "epoch" if validated else "no",
        # Checkpoints that are no longer needed are removed by the run itself, when a newer one is on the disk.
        "save_strategy": "epoch",
        "restore_callback_states_from_checkpoint": True,
        "load_best_model_at_end": validated,
        "metric_for_best_model": "eval_loss" if validated else None,
        "greater_is_better": False if validated else None,
        "prediction_loss_only": True,
    }
