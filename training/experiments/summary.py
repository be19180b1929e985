"""Mean and spread of a few runs' metrics."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from lorary.training.tasks.base import Metrics


def summarise(runs: Sequence[Metrics]) -> dict[str, dict[str, Any]]:
    """By metric: ``mean``, ``std`` (of the sample, n - 1; 0 for one run) and the runs' ``values`` in their order."""
    names = [name for name in runs[0] if all(name in run for run in runs)]
    return {name: spread([run[name] for run in runs]) for name in names}


def spread(values: Sequence[float]) -> dict[str, Any]:
    """One metric's figures, as :func:`summarise` gives them."""
    std = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": std, "values": list(values)}


def means(runs: Sequence[Metrics]) -> Metrics:
    """By metric: the mean alone."""
    return {name: figures["mean"] for name, figures in summarise(runs).items()}


def shown(figures: dict[str, Any]) -> str:
    """``0.912 ± 0.008``."""
    return f"{figures['mean']:.4g} ± {figures['std']:.2g}"
