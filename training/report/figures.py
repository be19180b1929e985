"""The report's figures, as PNG: the curves of a run, and its mistakes as a table of colours."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

from lorary.hub.markup import clean
from lorary.training.report.content import Curve, Mistakes, Report

_BLUE, _ORANGE = "#1f5fa8", "#d9722b"
_MOST_NAMED = 10  # runs that a legend can name: there are as many colours


def curves(report: Report) -> bytes:
    """Loss, learning rate and, where it was measured, the metric, against the step; PNG."""
    with_metric = [point for point in report.validations if point.metric is not None]
    figure, axes = _figure(2 + bool(with_metric), width=10.5, height=3.2)
    _loss(axes[0], report)
    steps = [point.step for point in report.points]
    axes[1].plot(steps, [point.learning_rate or 0.0 for point in report.points], color=_BLUE)
    axes[1].set_title("learning rate")
    axes[1].ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if with_metric:
        axes[2].plot(
            [point.step for point in with_metric], [point.metric for point in with_metric], color=_ORANGE, marker="o"
        )
        axes[2].set_title(f"{_brief(report.main_metric)} on the validation rows")
    for ax in axes:
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
    return _png(figure)


def _loss(ax: Any, report: Report) -> None:
    steps, losses = [point.step for point in report.points], [point.loss for point in report.points]
    # Single steps jump about: they stay visible behind their running mean.
    ax.plot(steps, losses, color=_BLUE, alpha=0.3, linewidth=0.8)
    ax.plot(steps, _smoothed(losses), color=_BLUE, label="training")
    if report.validations:
        ax.plot(
            [point.step for point in report.validations], [point.loss for point in report.validations],
            color=_ORANGE, marker="o", markersize=4, label="validation",
        )  # fmt: skip
    ax.legend(frameon=False)
    ax.set_title("loss (nats)")


def folds(runs: Sequence[Curve], metric: str) -> bytes:
    """Each fold's training loss, and its validation loss and metric where these were measured; PNG."""
    with_metric = any(part.metric is not None for run in runs for part in run.validations)
    with_loss = any(run.validations for run in runs)
    figure, axes = _figure(1 + with_loss + with_metric, width=10.5, height=3.2)
    for run in runs:
        steps = [point.step for point in run.points]
        axes[0].plot(steps, _smoothed([point.loss for point in run.points]), label=_brief(run.name))
        measured = [part.step for part in run.validations]
        if with_loss:
            axes[1].plot(measured, [part.loss for part in run.validations], marker="o", markersize=3)
        if with_metric:
            axes[2].plot(measured, [part.metric for part in run.validations], marker="o", markersize=3)
    axes[0].set_title("training loss (nats)")
    for ax, title in zip(
        axes[1:], ("validation loss (nats)", f"{_brief(metric)} on the validation rows"), strict=False
    ):
        ax.set_title(title)
    if len(runs) <= _MOST_NAMED:
        axes[0].legend(frameon=False, fontsize=8)
    for ax in axes:
        ax.set_xlabel("step")
        ax.grid(alpha=0.25)
    return _png(figure)


def _smoothed(values: Sequence[float]) -> list[float]:
    """An exponential running mean over about a twentieth of the values."""
    keep = 1 - 1 / max(1.0, len(values) / 20)
    mean, smooth = (values[0] if values else 0.0), []
    for value in values:
        mean = keep * mean + (1 - keep) * value
        smooth.append(mean)
    return smooth


def mistakes(found: Mistakes) -> bytes:
    """The counts as a table of colours, each row in shares of its sum; PNG."""
    height = 1.2 + 0.38 * len(found.rows)
    figure, (ax,) = _figure(1, width=2.4 + 0.62 * len(found.columns), height=height)
    shares = [[count / max(1, sum(row)) for count in row] for row in found.counts]
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    ax.set_xticks(range(len(found.columns)), [_brief(name) for name in found.columns], rotation=40, ha="right")
    ax.set_yticks(range(len(found.rows)), [_brief(name) for name in found.rows])
    for i, row in enumerate(found.counts):
        for j, count in enumerate(row):
            if count:
                ax.text(
                    j, i, str(count), ha="center", va="center", color="white" if shares[i][j] > 0.6 else "black",
                    fontsize=8,
                )  # fmt: skip
    if found.kind == "confusion":
        ax.set_xlabel("answer")
        ax.set_ylabel("true label")
    else:
        ax.set_xlabel("what became of each type's entities")
    return _png(figure)


def _brief(name: str, longest: int = 24) -> str:
    # A `$` would begin a formula, and no font has control characters.
    name = clean(name)
    short = name if len(name) <= longest else f"{name[: longest - 3]}..."
    return short.replace("$", r"\$")


def _figure(panels: int, width: float, height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, panels, squeeze=False)[0]


def _png(figure: Any) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    FigureCanvasAgg(figure)
    # No date and no version in it: the same run gives the same bytes.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()
