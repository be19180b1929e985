"""The trackers that a recipe names: a run's figures go to them while it goes on."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lorary.hub.errors import TrainingError
from lorary.training.recipe import Recipe


def demand_login(recipe: Recipe) -> None:
    """Find out before a run whether Weights & Biases would follow it; in a terminal it may ask for the key.

    Raises:
        TrainingError: it has no login, or one that isn't taken.
    """
    if "wandb" not in recipe.report.to:
        return
    import wandb

    try:
        wandb.login()  # asks for nothing where WANDB_MODE is offline or disabled
    except wandb.errors.Error as error:
        why = str(error).rstrip(".")
        raise TrainingError(
            f"report.to: wandb can't follow the run ({why}); log in with `wandb login` or WANDB_API_KEY, set "
            "WANDB_MODE=offline to keep its figures here, or leave wandb out"
        ) from error


def keep_tensorboard_logs(trainer: Any, recipe: Recipe) -> None:
    """Let TensorBoard's log stand in ``runs/tensorboard/NAME-TIME``.

    By default it would stand among the trainer's checkpoints, which are gone after the run. ``TENSORBOARD_LOGGING_DIR``
    has the last word, as transformers documents it.
    """
    if "tensorboard" not in recipe.report.to or "TENSORBOARD_LOGGING_DIR" in os.environ:
        return
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    trainer.remove_callback(TensorBoardCallback)
    trainer.add_callback(TensorBoardCallback(SummaryWriter(str(Path("runs", "tensorboard", f"{recipe.name}-{stamp}")))))
