"""The report of a cross-validation: of each row, what the run made of it that hadn't seen it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lorary.training.report.content import Curve, Mistakes, Report
from lorary.training.tasks.base import Metrics


def with_curves(report: Report, folds: Sequence[Report]) -> Report:
    """The report of the run on all rows, with the curves of the folds' runs."""
    curves = (
        Curve(name=f"fold {number}", points=fold.points, validations=fold.validations)
        for number, fold in enumerate(folds, start=1)
    )
    counts = sorted({len(fold.points) and fold.points[-1].step for fold in folds})
    steps = f"{counts[0]:,}" if len(counts) == 1 else f"{counts[0]:,} to {counts[-1]:,}"
    facts = {**report.facts, "folds": f"{len(folds)}, of {steps} steps"}
    return report.model_copy(update={"folds": tuple(curves), "facts": facts})


def crossed(
    report: Report, folds: Sequence[Report], metrics: Mapping[str, Metrics], mistakes: Mistakes | None, most: int
) -> Report:
    """The same, with the folds' held-out rows, which are all rows, in place of rows that it was trained on.

    Args:
        report: of the run on all rows.
        folds: the folds' reports.
        metrics: the folds' means.
        mistakes: counted over all rows.
        most: how many of the worst rows are wanted.
    """
    worst = sorted((row for fold in folds for row in fold.worst), key=lambda row: -row.loss)
    return with_curves(report, folds).model_copy(
        update={
            "metrics": {split: dict(values) for split, values in metrics.items()},
            "mistakes": mistakes,
            "worst": tuple(worst[:most]),
            "ranked": sum(fold.ranked for fold in folds),
            "crossed": True,
        }
    )
