"""What a start is worth before anything is trained: what a probe reads off it, or the metric as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from lorary.training.advisor.probe import Measured
from lorary.training.experiments.bootstrap import Scorer
from lorary.training.fitting.evaluate import outcomes as token_outcomes
from lorary.training.tasks import Encoded, Task
from lorary.training.tasks.metrics.tokens import token_metrics
from lorary.training.tasks.preference import PreferencePairs
from lorary.training.tasks.writing import WritesTexts

Manner = Literal["probe", "loss", "as it is"]


def manner_of(task: Task) -> Manner | None:
    """How starts are measured for a task; None where nothing can be told before training.

    A head that is still to be trained is stood in for by a ``probe``; what has none to train is measured as it is: by
    the loss where texts are written, which would take long, else by its main metric. Preference pairs are measured
    against the very model that they start from.
    """
    if isinstance(task, PreferencePairs):
        return None
    if task.name in ("text-classification", "token-classification"):
        return "probe"
    return "loss" if isinstance(task, WritesTexts) or task.main_metric == "loss" else "as it is"


@dataclass(frozen=True)
class ByLoss:
    """Scores what a model makes of the tokens that were to come, where a task's own metric reads texts."""

    main_metric: str = "loss"

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """The mean loss of a token (nats)."""
        return token_metrics(outcomes)["loss"]

    def scoring(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Callable[[Sequence[int]], float]:
        """The mean loss of the rows at places."""
        return lambda places: self.main_score([outcomes[one] for one in places], golds)

    def is_scored(self, outcome: Any) -> bool:
        """Every row is."""
        return True


def scorer_of(task: Task, manner: Manner) -> Scorer:
    """What scores the outcomes of :func:`as_it_is`."""
    return ByLoss() if manner == "loss" else task


def as_it_is(model: Any, task: Task, manner: Manner, rows: Encoded, tokenizer: Any, batch_size: int) -> Measured:
    """What a model comes to on the rows without having learned from any of them."""
    scorer = scorer_of(task, manner)
    if manner == "loss":
        found = token_outcomes(model, task, rows, tokenizer, batch_size)
    else:
        found = task.outcomes(model, rows, tokenizer, batch_size)
    return Measured(found, scorer.main_score(found, rows.golds))
