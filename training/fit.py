"""The run itself: transformers' Trainer for classifiers, TRL's SFTTrainer for generation, set up for adapters."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from lorary.hub.errors import TrainingError
from lorary.training.model import base_dtype
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.tasks.base import Encoded, Task


@dataclass(frozen=True)
class Fitted:
    """What a run came to: steps done, the mean training loss, and the best epoch where the rows decided it."""

    steps: int
    loss: float
    best_epoch: float | None
    curve: tuple[tuple[int, float], ...]


class _Watch(TrainerCallback):
    """Moves the bar, keeps the losses, and stops a run that has gone wrong at the step where it did."""

    def __init__(self, reporter: Reporter) -> None:
        self.reporter = reporter
        self.losses: list[tuple[int, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called for each step, since ``logging_steps`` is 1."""
        logs = logs or {}
        if "loss" not in logs:
            return
        loss = float(logs["loss"])
        for name in ("loss", "grad_norm"):
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise TrainingError(
                    f"the {name} became {logs[name]} at step {state.global_step} of {state.max_steps}; "
                    "lower training.learning_rate, or raise training.warmup"
                )
        self.losses.append((state.global_step, loss))
        self.reporter.step(state.global_step, state.max_steps, loss)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: dict[str, float] | None = None, **_: Any
    ) -> None:
        """A validation loss that isn't a number would silently keep the first epoch."""
        loss = (metrics or {}).get("eval_loss", 0.0)
        if not math.isfinite(loss):
            raise TrainingError(
                f"the validation loss became {loss} at step {state.global_step}; lower the learning rate"
            )


def fit(
    model: Any, tokenizer: Any, task: Task, train: Encoded, validation: Encoded | None, recipe: Recipe, *,
    folder: Path, reporter: Reporter,
) -> Fitted:  # fmt: skip
    """Train ``model`` in place; with validation rows, the epoch with the lowest loss on them is kept.

    Args:
        folder: where the trainer's own checkpoints go for the time of the run; they hold pickles.

    Raises:
        TrainingError: the loss or the gradients aren't numbers any more, or memory ran out.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

    watch = _Watch(reporter)
    trainer = make_trainer(model, tokenizer, task, train, validation, recipe, folder)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(watch)
    if validation:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.early_stopping))
    # TRL casts adapters on a quantized base to bfloat16, which swallows small updates.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    try:
        result = trainer.train()
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory ran out; lower training.batch_size (and raise training.gradient_accumulation), "
            "lower training.max_length, set training.gradient_checkpointing: true, or use method: qlora"
        ) from error
    finally:
        _undo(model, trainer)
    return Fitted(result.global_step, float(result.training_loss), _best_epoch(trainer), tuple(watch.losses))


def _settings(model: Any, recipe: Recipe, folder: Path, validated: bool) -> dict[str, Any]:
    """Arguments that both trainers take."""
    training, dtype = recipe.training, base_dtype(model)
    on_cpu = next(model.parameters()).device.type == "cpu"
    return {
        "output_dir": str(folder),
        "num_train_epochs": training.epochs,
        "max_steps": training.max_steps or -1,
        "per_device_train_batch_size": training.batch_size,
        "per_device_eval_batch_size": training.batch_size,
        "gradient_accumulation_steps": training.gradient_accumulation,
        "learning_rate": training.learning_rate,
        "warmup_steps": training.warmup,
        "weight_decay": training.weight_decay,
        "max_grad_norm": training.max_grad_norm,
        "lr_scheduler_type": training.scheduler,
        "seed": training.seed,
        "data_seed": training.seed,
        "use_cpu": on_cpu,
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "gradient_checkpointing": training.gradient_checkpointing,
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
        # Off, since it would show the last finite loss in place of a NaN.
        "logging_nan_inf_filter": False,
        "eval_strategy": "epoch" if validated else "no",
        "save_strategy": "epoch" if validated else "no",
        "save_total_limit": 1,
        "save_only_model": True,
        "load_best_model_at_end": validated,
        "metric_for_best_model": "eval_loss" if validated else None,
        "greater_is_better": False if validated else None,
        "prediction_loss_only": True,
    }


def make_trainer(
    model: Any, tokenizer: Any, task: Task, train: Encoded, validation: Encoded | None, recipe: Recipe, folder: Path
) -> Any:
    """transformers' ``Trainer``, or TRL's ``SFTTrainer`` for text generation, ready to train."""
    from datasets import Dataset

    settings = _settings(model, recipe, folder, validation is not None)
    sets = {
        "train_dataset": Dataset.from_list(list(train.features)),
        "eval_dataset": Dataset.from_list(list(validation.features)) if validation else None,
    }
    if task.name != "text-generation":
        from transformers import Trainer, TrainingArguments

        arguments = _one_device(TrainingArguments(**settings))
        return Trainer(model=model, args=arguments, data_collator=task.collator(tokenizer), **sets)
    from trl import SFTConfig, SFTTrainer

    training = recipe.training
    config = SFTConfig(**settings, max_length=training.max_length, packing=training.packing, eval_packing=False)
    # Packing comes with a collator of its own.
    collator = None if training.packing else task.collator(tokenizer)
    trainer = SFTTrainer(
        model=model, args=_one_device(config), data_collator=collator, processing_class=tokenizer, **sets
    )
    # Its checkpoints are removed after the run; a card for each of them would be written for nobody.
    trainer.create_model_card = lambda *_, **__: None
    return trainer


def _one_device(arguments: Any) -> Any:
    """One process trains on one device, or on a device map; several visible GPUs must not start DataParallel."""
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1
    return arguments


def _undo(model: Any, trainer: Any) -> None:
    """Take off what the trainers put around the base's forward, so that the base is as it was loaded."""
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    for module in (model, model.get_base_model()):
        module.__dict__.pop("forward", None)
    if trainer.args.gradient_checkpointing:
        model.get_base_model().gradient_checkpointing_disable()
    model.eval()


def _best_epoch(trainer: Any) -> float | None:
    best = trainer.state.best_global_step
    if best is None:
        return None
    return next((entry["epoch"] for entry in trainer.state.log_history if entry["step"] == best), None)
