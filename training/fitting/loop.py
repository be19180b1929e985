"""The steps of a run: from where it was left, in batches that fit, to a trained model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.adapters.base.memory import free_memory, out_of_memory
from lorary.hub.errors import TrainingError, first_line
from lorary.training.checkpoints import latest, prune
from lorary.training.distributed import ALONE, Group, lost_another
from lorary.training.fitting.checkpointer import Checkpointer
from lorary.training.fitting.job import Job
from lorary.training.fitting.memory_fallback import Batching, put_back, trained_parameters
from lorary.training.fitting.normalise import normalise
from lorary.training.fitting.own_device import device_of
from lorary.training.fitting.step_rows import StepRows
from lorary.training.fitting.watch import Watch
from lorary.training.interrupt import Stops
from lorary.training.progress import Reporter


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


def carry_out(job: Job, *, folder: Path, reporter: Reporter, stops: Stops, group: Group = ALONE) -> Fitted:
    """Train the job's model in place; with validation rows, the epoch that is the best on them is kept.

    Args:
        folder: where the trainer's own checkpoints go for the time of the run; they hold pickles. Where it holds one,
            the run goes on from there.
        stops: asked after each step whether to end with a checkpoint.
        group: the processes that train together; each calls this.

    Raises:
        TrainingError: the loss or the gradients aren't numbers any more, or memory ran out with as few rows at a time
            as can teach.
        InterruptedRunError: the user has asked to stop.
    """
    begin = trained_parameters(job.model)
    batching = Batching.of(job.training, folder)
    while True:
        try:
            with device_of(job.model):
                return _attempt(job, batching, folder, reporter, stops, group)
        except (RuntimeError, MemoryError) as error:
            if lost_another(error) and group.count > 1:
                raise TrainingError(
                    f"another of the {group.count} processes has ended, and a step needs them all; its own words, or "
                    f"the launcher's, say why ({first_line(error)[:200]})"
                ) from error
            if not out_of_memory(error):
                raise
            if group.count > 1:  # the others are in the middle of a step, and wait for this one
                raise TrainingError(
                    f"memory ran out with {batching.size} rows at a time in each of {group.count} processes; halve "
                    f"training.batch_size and double training.gradient_accumulation; or {job.advice}"
                ) from error
            smaller = batching.smaller(job.least_batch)
            if smaller is None:
                few = f"{batching.size} rows at a time, and fewer have nothing to be told from"
                raise TrainingError(
                    f"memory ran out with {'one row at a time' if batching.size == 1 else few}; {job.advice}"
                ) from error
        # Only here, where the error and the step's tensors behind it are gone.
        free_memory()
        put_back(job.model, begin)
        rows = "the same rows" if smaller.rows == batching.rows else f"{smaller.rows} rows in place of {batching.rows}"
        reporter.note(
            f"memory ran out with {batching.size} rows at a time: going on with training.batch_size {smaller.size} and "
            f"training.gradient_accumulation {smaller.accumulation}, which makes steps of {rows}"
        )
        if job.batch_counts:
            reporter.note(
                f"a text is compared with those of its own batch: now {smaller.size} rows in place of {batching.size}, "
                "which is easier and teaches less. A shorter training.max_length or training.gradient_checkpointing: "
                "true may keep the batch whole"
            )
        smaller.keep(folder)
        batching = smaller


def _attempt(job: Job, batching: Batching, folder: Path, reporter: Reporter, stops: Stops, group: Group) -> Fitted:
    """Train from the newest checkpoint in ``folder``, or from the beginning."""
    from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback

    begun = latest(folder) if group.first else None
    if group.first:
        prune(folder, {begun.folder, begun.best} if begun else set())
    begun = group.from_first(begun)
    seconds = begun.seconds if begun else 0.0
    checkpointer = Checkpointer(folder, job.training.checkpoint_steps, stops, seconds, group)
    trainer = job.trainer(batching, folder)
    for line in job.notices():
        reporter.note(line)
    rows = StepRows(trainer, job.train, group)
    normalise(trainer)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(rows)
    trainer.add_callback(Watch(reporter, rows))
    for callback in job.callbacks(batching, reporter.note):
        trainer.add_callback(callback)
    if job.validation:
        trainer.add_callback(EarlyStoppingCallback(job.training.early_stopping))
    trainer.add_callback(checkpointer)
    job.prepare(trainer)
    try:
        if begun and begun.ended:
            job.take(begun.best)
            return _fitted(begun.state, begun.seconds)
        if begun:
            reporter.note(f"going on after step {begun.step} of {begun.total}")
        with stops.after_the_step(reporter.note):
            trainer.train(resume_from_checkpoint=str(begun.folder) if begun else None)
    finally:
        job.undo(trainer)
    return _fitted(vars(trainer.state), checkpointer.elapsed)


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
