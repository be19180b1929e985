"""Paired bootstrap: is one way of training better than another on the same held-out rows, or is it the rows' luck?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy

from lorary.hub.metrics import lower_is_better

RESAMPLES = 500
_Scoring = Callable[[Sequence[int]], float]


class Scorer(Protocol):
    """What scores outcomes by one metric; every task does by its main one."""

    @property
    def main_metric(self) -> str:
        """Its name."""

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """The metric of these rows."""

    def scoring(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Callable[[Sequence[int]], float]:
        """What gives the metric of any of these rows by their places: it is asked thousands of times."""

    def is_scored(self, outcome: Any) -> bool:
        """Does the metric read what a model made of a row?"""


@dataclass(frozen=True)
class Difference:
    """How two ways of training differ in a metric: ``value`` is the first's minus the second's.

    ``low`` and ``high`` hold 95% of the resamples' differences, or as many as were asked for; ``better`` is the share
    of resamples in which the first is the better one.
    """

    metric: str
    value: float
    low: float
    high: float
    better: float

    @property
    def shown(self) -> str:
        """The difference with its interval, for people."""
        return f"{self.value:+.3f} ({self.low:+.3f} to {self.high:+.3f})"

    @property
    def verdict(self) -> str:
        """``better``, ``worse``, or ``no difference`` where the interval holds zero."""
        if self.low <= 0 <= self.high:
            return "no difference"
        return "better" if (self.value < 0) == lower_is_better(self.metric) else "worse"


def paired_bootstrap(
    task: Scorer,
    golds: Sequence[Any],
    ours: Sequence[Sequence[Any]],
    theirs: Sequence[Sequence[Any]],
    *,
    against: tuple[Scorer, Sequence[Any]] | None = None,
    level: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Difference:
    """Compare the main metric on the rows that it reads, drawn again, the same for both sides (Koehn 2004).

    Args:
        task: whose main metric it is, or what else scores outcomes.
        golds: what each row's answer should be.
        ours: what each seed's run made of each row.
        theirs: the same of the other way; the seeds' metrics are averaged on both sides.
        against: the other way's own task and golds of the same rows, where its labels have another order, say.
        level: the share of the resamples that the interval holds.
        resamples: how often rows are drawn.
        seed: of the drawing.
    """
    name = task.main_metric
    first, second = _scorings(task, golds, ours), _scorings(*(against or (task, golds)), theirs)

    def difference(places: Sequence[int]) -> float:
        return _mean_score(first, places) - _mean_score(second, places)

    scored = [
        place for place in range(len(golds)) if task.is_scored(ours[0][place]) and task.is_scored(theirs[0][place])
    ]
    random = numpy.random.default_rng(seed)
    differences = []
    for _ in range(resamples):
        places = [scored[drawn] for drawn in random.integers(0, len(scored), len(scored))]
        differences.append(difference(places))
    sign = -1 if lower_is_better(name) else 1
    low, high = numpy.quantile(differences, ((1 - level) / 2, (1 + level) / 2))
    better = float(numpy.mean([sign * value > 0 for value in differences]))
    return Difference(name, difference(scored), float(low), float(high), better)


def _scorings(task: Scorer, golds: Sequence[Any], runs: Sequence[Sequence[Any]]) -> list[_Scoring]:
    return [task.scoring(run, golds) for run in runs]


def _mean_score(scorings: Sequence[_Scoring], places: Sequence[int]) -> float:
    return float(numpy.mean([score(places) for score in scorings]))
