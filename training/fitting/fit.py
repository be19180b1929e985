"""The run itself: from a prepared model to a trained one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.errors import TrainingError
from lorary.training.checkpoints import latest, prune
from lorary.training.distributed import ALONE, Group
from lorary.training.fitting.checkpointer import Checkpointer
from lorary.training.fitting.memory_fallback import (
    ADVICE,
    Batching,
    free_memory,
    out_of_memory,
    put_back,
    trained_parameters,
)
from lorary.training.fitting.metric import ValidationMetric
from lorary.training.fitting.normalise import normalise
from lorary.training.fitting.step_rows import StepRows
from lorary.training.fitting.trainer import make_trainer
from lorary.training.fitting.watch import Watch
from lorary.training.interrupt import Stops
from lorary.training.model.adapter import in_float32
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.tasks.base import Encoded, Task


@dataclass(frozen=True)
class Fitted:
    """What a run came to: steps done, the mean training loss, and the best epoch where the rows decided it.

    ``history`` is the trainer's log: an entry for each step, and one for each look at the validation rows. ``seconds``
    are those of training, without the time between a stop and the going on.
    """

    steps: int
    loss: float
    best_epoch: float | None
    history: tuple[Mapping[str, float], ...]
    seconds: float

    @property
    def curve(self) -> list[tuple[int, float]]:
        """The training loss of each step."""
        return [(int(entry["step"]), float(entry["loss"])) for entry in self.history if "loss" in entry]


def fit(
    model: Any, tokenizer: Any, task: Task, train: Encoded, validation: Encoded | None, recipe: Recipe, *,
    folder: Path, reporter: Reporter, stops: Stops, group: Group = ALONE,
) -> Fitted:  # fmt: skip
    """Train ``model`` in place; with validation rows, the epoch with the lowest loss on them is kept.

    Args:
        folder: where the trainer's own checkpoints go for the time of the run; they hold pickles. Where it holds one,
            the run goes on from there.
        stops: asked after each step whether to end with a checkpoint.
        group: the processes that train together; each calls this.

    Raises:
        TrainingError: the loss or the gradients aren't numbers any more, or memory ran out with one row at a time.
        InterruptedRunError: the user has asked to stop.
    """
    begin = trained_parameters(model)
    batching = Batching.of(recipe, folder)
    while True:
        try:
            return _attempt(model, tokenizer, task, train, validation, recipe, batching, folder, reporter, stops, group)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if group.count > 1:  # the others are in the middle of a step, and wait for this one
                raise TrainingError(
                    f"memory ran out with {batching.size} rows at a time in each of {group.count} processes; halve "
                    f"training.batch_size and double training.gradient_accumulation; or {ADVICE}"
                ) from error
            smaller = batching.smaller()
            if smaller is None:
                raise TrainingError(f"memory ran out with one row at a time; {ADVICE}") from error
        # Only here, where the error and the step's tensors behind it are gone.
        free_memory()
        put_back(model, begin)
        reporter.note(
            f"memory ran out with {batching.size} rows at a time: going on with training.batch_size {smaller.size} and "
            f"training.gradient_accumulation {smaller.accumulation}, which makes steps of the same rows"
        )
        smaller.keep(folder)
        batching = smaller


def _attempt(
    model: Any, tokenizer: Any, task: Task, train: Encoded, validation: Encoded | None, recipe: Recipe,
    batching: Batching, folder: Path, reporter: Reporter, stops: Stops, group: Group,
) -> Fitted:  # fmt: skip
    """Train from the newest checkpoint in ``folder``, or from the beginning."""
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

    begun = latest(folder) if group.first else None
    if group.first:
        prune(folder, {begun.folder, begun.best} if begun else set())
    begun = group.from_first(begun)
    seconds = begun.seconds if begun else 0.0
    checkpointer = Checkpointer(folder, recipe.training.checkpoint_steps, stops, seconds, group)
    trainer = make_trainer(model, tokenizer, task, train, validation, recipe, folder, batching)
    for line in task.notices:
        reporter.note(line)
    rows = StepRows(trainer, train, group)
    normalise(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(rows)
    trainer.add_callback(Watch(reporter, recipe, rows))
    if validation and task.scored_in_one_pass and task.main_metric != "loss":
        trainer.add_callback(ValidationMetric(model, task, validation, tokenizer, batching.size, reporter.note))
    if validation:
        trainer.add_callback(EarlyStoppingCallback(recipe.training.early_stopping))
    trainer.add_callback(checkpointer)
    # TRL casts adapters on a quantized base to bfloat16, which swallows small updates.
    in_float32(model)
    try:
        if begun and begun.ended:
            model.load_adapter(str(begun.best), "default", is_trainable=True)
            return _fitted(begun.state, begun.seconds)
        if begun:
            reporter.note(f"going on after step {begun.step} of {begun.total}")
        with stops.after_the_step(reporter.note):
            trainer.train(resume_from_checkpoint=str(begun.folder) if begun else None)
    finally:
        _undo(model, trainer)
    return _fitted(vars(trainer.state), checkpointer.elapsed)


def _undo(model: Any, trainer: Any) -> None:
    """Take off what the trainers put around the base's forward, so that the base is as it was loaded."""
    trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
    for module in (model, model.get_base_model()):
        module.__dict__.pop("forward", None)
    if trainer.args.gradient_checkpointing:
        model.get_base_model().gradient_checkpointing_disable()
    model.eval()


def _fitted(state: Mapping[str, Any], seconds: float) -> Fitted:
    """What a run came to, from the trainer's state at its end, which holds the log of all of its steps."""
    history = tuple(state["log_history"])
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    best = state.get("best_global_step")
    epochs = (entry["epoch"] for entry in history if entry["step"] == best)
    return Fitted(
        steps=int(state["global_step"]),
        loss=sum(losses) / max(1, len(losses)),
        best_epoch=next(epochs, None) if best else None,
        history=history,
        seconds=seconds,
    )
