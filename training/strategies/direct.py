"""Strategy ``direct``: the base as it is, on the task's held-out rows; nothing is trained and nothing registered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorary.training.data import load_data
from lorary.training.prepare import encode_parts
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import Recipe
from lorary.training.tasks import Encoded, Task, make_task
from lorary.training.tasks.base import Metrics


@dataclass(frozen=True)
class Measured:
    """A base measured as it is. ``metrics``: ``untrained``, and baselines such as the ``majority`` class."""

    task: Task
    test: Encoded
    outcomes: Sequence[Any]
    metrics: Mapping[str, Metrics]
    fingerprint: str | None
    new_head: bool


def measure(recipe: Recipe, progress: Reporter | None = None) -> Measured:
    """Measure a recipe's base on its held-out rows, without an adapter.

    A task that brings a new head is answered by a random one, which is the level of chance; a language model answers
    as it was pretrained.

    Raises:
        DataError: rows that can't be used.
        BaseNotFoundError: the base can't be found or loaded.
    """
    from lorary.training.model import load_for

    reporter = progress or Reporter()
    reporter.phase("reading the data")
    data = load_data(recipe, reporter.note)
    with quiet_libraries():
        reporter.phase("loading the base")
        task = make_task(recipe, data.labels, data.problem_type)
        base = load_for(task, recipe)
        base.model.requires_grad_(False)
        encoded, _, _ = encode_parts(recipe, {"train": data.train, "test": data.test}, task, base, reporter)
        test = task.refer(base.model, encoded["test"], base.tokenizer, recipe.training.batch_size)
        reporter.phase("measuring")
        found = task.outcomes(base.model, test, base.tokenizer, recipe.training.batch_size)
        metrics = {"untrained": task.metrics(found, test.golds)}
        metrics |= task.baselines(data.train, encoded["train"], test, base.tokenizer)
        reporter.phase("done")
    new_head = bool(base.new) and task.new_head
    if new_head:
        reporter.note(f"the base has no head for {task.name}, so a random one answers: this is the level of chance")
    return Measured(task, test, found, metrics, base.identity.fingerprint, new_head)
