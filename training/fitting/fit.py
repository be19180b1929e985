"""The run itself: from a prepared model to a trained one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.training.data import Note
from lorary.training.distributed import ALONE, Group
from lorary.training.fitting.job import Job
from lorary.training.fitting.loop import Fitted, carry_out
from lorary.training.fitting.memory_fallback import Batching
from lorary.training.fitting.metric import ValidationMetric
from lorary.training.fitting.rank_allocation import ORTHOGONALITY, RankAllocation, judge_final_ranks, keep_orthogonal
from lorary.training.fitting.trainer import make_trainer
from lorary.training.interrupt import Stops
from lorary.training.model.adapter import in_float32
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.tasks.base import Task
from lorary.training.tasks.rows.encoded import Encoded

ADVICE = (
    "lower training.max_length, set training.gradient_checkpointing: true, or use method: qlora; "
    "a smaller base is the other way"
)


def fit(
    model: Any, tokenizer: Any, task: Task, train: Encoded, validation: Encoded | None, recipe: Recipe, *,
    folder: Path, reporter: Reporter, stops: Stops, group: Group = ALONE,
) -> Fitted:  # fmt: skip
    """Train an adapter in place; arguments and errors as :func:`lorary.training.fitting.loop.carry_out`."""
    job = AdapterJob(model, train, validation, recipe.training, ADVICE, tokenizer, task, recipe)
    return carry_out(job, folder=folder, reporter=reporter, stops=stops, group=group)


@dataclass(frozen=True)
class AdapterJob(Job):
    """An adapter, trained for a task."""

    tokenizer: Any
    task: Task
    recipe: Recipe

    def trainer(self, batching: Batching, folder: Path) -> Any:
        """The task's."""
        return make_trainer(
            self.model, self.tokenizer, self.task, self.train, self.validation, self.recipe, folder, batching
        )

    @property
    def batch_counts(self) -> bool:
        """The task says."""
        return self.task.batch_counts

    @property
    def least_batch(self) -> int:
        """The task says."""
        return self.task.least_batch

    def notices(self) -> Sequence[str]:
        """The task's."""
        return self.task.notices

    def callbacks(self, batching: Batching, note: Note) -> Sequence[Any]:
        """The task's metric beside the validation loss, where it takes one pass over the rows; AdaLoRA's allocator."""
        task, found = self.task, list[Any]()
        if self.recipe.method == "adalora":
            found.append(RankAllocation(self.model, self.recipe.peft, note))
        if self.validation and task.scored_in_one_pass and task.main_metric != "loss":
            decides = self.recipe.training.best_by == "metric"
            found.append(
                ValidationMetric(
                    self.model, task, self.validation, self.tokenizer, batching.size, note, decides=decides
                )
            )
        return found

    def prepare(self, trainer: Any) -> None:
        """TRL casts adapters on a quantized base to bfloat16, which swallows small updates."""
        in_float32(self.model)
        if self.recipe.method == "adalora":
            keep_orthogonal(trainer, self.model, self.recipe.peft.get("orth_reg_weight", ORTHOGONALITY))
            judge_final_ranks(trainer, self.recipe.peft)

    def take(self, checkpoint: Path) -> None:
        """Read the adapter of a checkpoint."""
        self.model.load_adapter(str(checkpoint), "default", is_trainable=True)

    def undo(self, trainer: Any) -> None:
        """The base is then as it was loaded."""
        super().undo(trainer)
        base = self.model.get_base_model()
        base.__dict__.pop("forward", None)
        if trainer.args.gradient_checkpointing:
            base.gradient_checkpointing_disable()
            base.disable_input_require_grads()  # TRL's trainers ask for them; what is left of one can't be copied
