"""Training a model from scratch, and measuring it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.training.fitting.evaluate import row_logits
from lorary.training.fitting.job import Job
from lorary.training.fitting.loop import Fitted, carry_out
from lorary.training.fitting.memory_fallback import Batching
from lorary.training.fitting.own_device import one_device
from lorary.training.fitting.trainer import settle_warmup, trainer_settings
from lorary.training.interrupt import Stops
from lorary.training.pretraining.corpus import Objective
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.progress import Reporter
from lorary.training.tasks.hiding.masking import Epochs, HiddenRows
from lorary.training.tasks.metrics.tokens import TokenScore
from lorary.training.tasks.rows.encoded import Encoded

ADVICE = "lower model.context, or choose a smaller preset"


def fit(
    model: Any, objective: Objective, train: Encoded, validation: Encoded | None, recipe: PretrainRecipe, *,
    folder: Path, reporter: Reporter, stops: Stops,
) -> Fitted:  # fmt: skip
    """Train all of a model in place; arguments and errors as :func:`lorary.training.fitting.loop.carry_out`."""
    job = BaseJob(model, train, validation, recipe.training, ADVICE, objective)
    return carry_out(job, folder=folder, reporter=reporter, stops=stops)


@dataclass(frozen=True)
class BaseJob(Job):
    """A whole model, trained from its random weights."""

    objective: Objective

    def trainer(self, batching: Batching, folder: Path) -> Any:
        """transformers' own."""
        from transformers import Trainer, TrainingArguments

        validated = self.validation is not None
        settings = trainer_settings(self.model, self.training, batching, folder, validated=validated)
        trainer = Trainer(
            model=self.model,
            args=one_device(TrainingArguments(**settings), self.model),
            data_collator=self.objective.collator(),
            train_dataset=self.objective.training_rows(self.train.features),
            eval_dataset=self.validation.features if self.validation else None,
        )
        settle_warmup(trainer, self.training, batching)
        if isinstance(trainer.train_dataset, HiddenRows):
            trainer.add_callback(Epochs(trainer.train_dataset))
        return trainer

    def take(self, checkpoint: Path) -> None:
        """Read the model of a checkpoint; tensors that the model ties stand there once."""
        from safetensors.torch import load_model

        load_model(self.model, checkpoint / "model.safetensors", device=str(self.model.device))


def scores(model: Any, objective: Objective, rows: Encoded, batch_size: int) -> list[TokenScore]:
    """What the model makes of each row's tokens."""
    collate = objective.collator()
    found: list[TokenScore] = []
    for start in range(0, len(rows.features), batch_size):
        features = list(rows.features[start : start + batch_size])
        logits = row_logits(model, collate, features)
        found += [objective.score(row, feature) for row, feature in zip(logits, features, strict=True)]
    return found
