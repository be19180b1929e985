"""From a finished run to its report."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lorary.hub.provenance.curve import thinned
from lorary.hub.provenance.private import public_base, redact_text
from lorary.hub.reference import normalise_domain
from lorary.training.fitting.loop import Fitted
from lorary.training.prepare import Prepared
from lorary.training.provenance import without_folders
from lorary.training.report.content import Point, Report, Validation
from lorary.training.report.worst import worst_rows
from lorary.training.save import public
from lorary.training.tasks.base import Metrics

_MOST_POINTS = 1000


def build_report(
    prepared: Prepared, fitted: Fitted, metrics: Mapping[str, Metrics], outcomes: Sequence[Any],
    provenance: Mapping[str, Any],
) -> Report:  # fmt: skip
    """The report of a run; where no rows were held out, without a word of any.

    Args:
        metrics: by split, as they are registered.
        outcomes: the trained model's on the held-out rows.
        provenance: as the manifest holds it.
    """
    recipe, task = prepared.recipe, prepared.task
    files = (recipe.data.train, recipe.data.test, recipe.data.validation)
    held_out = prepared.data.held_out
    worst, ranked = worst_rows(
        prepared.model, task, prepared.test, outcomes, prepared.base.tokenizer, recipe.report.rows if held_out else 0
    )
    return Report(
        name=recipe.name,
        domain=normalise_domain(recipe.domain),
        task=task.name,
        base=public_base(prepared.base.identity.id),
        method=recipe.method,
        main_metric=task.main_metric,
        metrics={split: dict(values) for split, values in metrics.items()} if held_out else {},
        points=_points(fitted.history),
        validations=_validations(fitted.history),
        mistakes=task.mistakes(outcomes, prepared.test.golds) if held_out else None,
        worst=tuple(row.model_copy(update={"place": without_folders(row.place, *files)}) for row in worst),
        ranked=ranked,
        notices=tuple(provenance["notices"]),
        facts=_facts(prepared, fitted, provenance),
        recipe=redact_text(public(recipe).to_yaml()),
    )


def _points(history: Sequence[Mapping[str, float]]) -> tuple[Point, ...]:
    steps = [entry for entry in history if "loss" in entry]
    return tuple(
        Point(
            step=int(entry["step"]),
            loss=entry["loss"],
            learning_rate=entry.get("learning_rate"),
            # float16's first steps overflow, until their scale is found.
            gradient=norm if math.isfinite(norm := entry.get("grad_norm", math.nan)) else None,
        )
        for entry in thinned(steps, _MOST_POINTS)
    )


def _validations(history: Sequence[Mapping[str, float]]) -> tuple[Validation, ...]:
    return tuple(
        Validation(step=int(entry["step"]), loss=entry["eval_loss"], metric=entry.get("eval_metric"))
        for entry in history
        if "eval_loss" in entry
    )


def _facts(prepared: Prepared, fitted: Fitted, provenance: Mapping[str, Any]) -> dict[str, str]:
    rows, environment = provenance["data"]["rows"], provenance["environment"]
    trainable = sum(parameter.numel() for parameter in prepared.model.parameters() if parameter.requires_grad)
    best = provenance["best_epoch"]
    estimate = provenance.get("estimate")
    predicted = f" ({estimate['peak_memory_bytes'] / 1e6:,.0f} MB predicted)" if estimate else ""
    return {
        "rows": ", ".join(f"{count:,} {part}" for part, count in rows.items() if count),
        "trained parameters": f"{trainable:,}",
        "steps": f"{fitted.steps:,} in {provenance['seconds']:.1f} s" + (f", epoch {best:g} kept" if best else ""),
        "tokens": f"{provenance['tokens_per_second']:,.0f} a second, padding not counted",
        "peak memory": f"{provenance['peak_memory_bytes'] / 1e6:,.0f} MB{predicted}",
        "device": environment["device"],
        "packages": ", ".join(f"{name} {version}" for name, version in environment["packages"].items()),
        "seed": str(provenance["seed"]),
    }
