"""Training a model from scratch, and measuring it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from lorary.hub.errors import TrainingError
from lorary.training.fitting.evaluate import row_logits
from lorary.training.pretraining.corpus import Objective
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.progress import Reporter
from lorary.training.tasks.base import one_device
from lorary.training.tasks.made_rows import MadeRows
from lorary.training.tasks.token_scores import TokenScore


@dataclass(frozen=True)
class Fit:
    """What a run came to: steps done, the mean training loss, the loss of each step, and the epoch that was kept."""

    steps: int
    loss: float
    curve: tuple[tuple[int, float], ...]
    best_epoch: float | None


def fit(
    model: Any, objective: Objective, train: MadeRows, validation: MadeRows | None, recipe: PretrainRecipe, *,
    folder: Path, reporter: Reporter,
) -> Fit:  # fmt: skip
    """Train ``model`` in place, by transformers' ``Trainer``; with validation rows the best epoch is kept.

    Args:
        folder: where the trainer's checkpoints go for the time of the run.

    Raises:
        TrainingError: the loss isn't a number any more, or memory ran out.
    """
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, Trainer, TrainingArguments

    arguments = one_device(TrainingArguments(**_settings(model, recipe, folder, validation is not None)))
    trainer = Trainer(
        model=model,
        args=arguments,
        data_collator=objective.collator(),
        train_dataset=objective.training_rows(train),
        eval_dataset=validation,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(_Watch(reporter))
    if validation is not None:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.early_stopping))
    try:
        result = trainer.train()
    except torch.cuda.OutOfMemoryError as error:
        raise TrainingError(
            "the GPU's memory ran out; lower training.batch_size (and raise training.gradient_accumulation), or choose "
            "a smaller model.context or preset"
        ) from error
    model.eval()
    history = trainer.state.log_history
    losses = tuple((int(entry["step"]), float(entry["loss"])) for entry in history if "loss" in entry)
    best = next((entry["epoch"] for entry in history if entry["step"] == trainer.state.best_global_step), None)
    return Fit(result.global_step, float(result.training_loss), losses, best)


class _Watch(TrainerCallback):
    """Moves the bar, and stops a run whose loss isn't a number any more."""

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called for each step, and with the validation loss."""
        for name in ("loss", "grad_norm", "eval_loss"):
            value = float((logs or {}).get(name, 0.0))
            if not math.isfinite(value):
                raise TrainingError(
                    f"the {name} became {value} at step {state.global_step} of {state.max_steps}; "
                    "lower training.learning_rate, or raise training.warmup"
                )
        if logs and "loss" in logs:
            self._reporter.step(state.global_step, state.max_steps, float(logs["loss"]))


def scores(model: Any, objective: Objective, rows: MadeRows, batch_size: int) -> list[TokenScore]:
    """What the model makes of each row's tokens."""
    collate = objective.collator()
    found: list[TokenScore] = []
    for start in range(0, len(rows), batch_size):
        features = list(rows[start : start + batch_size])
        logits = row_logits(model, collate, features)
        found += [objective.score(row, feature) for row, feature in zip(logits, features, strict=True)]
    return found


def _settings(model: Any, recipe: PretrainRecipe, folder: Path, validated: bool) -> dict[str, Any]:
    training = recipe.training
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
        "dataloader_pin_memory": not on_cpu,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": "none",
        "disable_tqdm": True,
        "logging_steps": 1,
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
