"""What probes say of the rows themselves: is spelling enough, do class weights help, would more rows?"""

from __future__ import annotations

from dataclasses import dataclass

from lorary.hub.manifest import SINGLE_LABEL
from lorary.training.advisor.bench import Bench
from lorary.training.advisor.probe import probe
from lorary.training.advisor.rows import RowFacts
from lorary.training.advisor.spelling import spelling_alone
from lorary.training.experiments.bootstrap import Difference
from lorary.training.recipe import Recipe

UNEVEN = 3  # how many times rarer than the most frequent one a label is for class weights to be tried
_PARTS = (0.25, 0.5)


@dataclass(frozen=True)
class Beside:
    """Probes beside those of the starts; None where there is none.

    ``spelling`` is the score of a text's runs of letters, ``spelling_against_base`` how it differs from the base's.
    ``balanced`` is what class weights change. ``growth`` are scores by how many rows a probe was fitted on,
    ``growing`` how all of them differ from half.
    """

    spelling: float | None = None
    spelling_against_base: Difference | None = None
    balanced: Difference | None = None
    growth: tuple[tuple[int, float], ...] = ()
    growing: Difference | None = None


def look_beside(bench: Bench, recipe: Recipe, facts: RowFacts) -> Beside:
    """Probe the best start once more in other ways; nothing of tasks that aren't probed."""
    if not bench.probed:
        return Beside()
    task, rows, folds, best = bench.task, bench.rows, bench.folds, bench.best
    spelling = balanced = None
    if task.name == "text-classification":
        spelling = spelling_alone(task, rows, folds)
    penalty = (best.measured.penalty or 1.0,)
    if task.problem_type == SINGLE_LABEL and facts.imbalance >= UNEVEN and recipe.training.class_weights is None:
        weighed = probe(task, rows, best.states, folds, balanced=True, penalties=penalty)
        balanced = bench.difference(weighed, best.measured)
    fewer = [probe(task, rows, best.states, folds, share=part, penalties=penalty) for part in _PARTS]
    fitted = len(folds) * (max(folds)) // (max(folds) + 1)
    growth = [(round(fitted * part), one.score) for part, one in zip(_PARTS, fewer, strict=True)]
    return Beside(
        spelling.score if spelling else None,
        bench.difference(spelling, bench.bare.measured) if spelling else None,
        balanced,
        (*growth, (fitted, best.measured.score)),
        bench.difference(best.measured, fewer[-1]),
    )
