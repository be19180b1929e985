"""What ``lorary advise`` has found, as tables and as JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lorary.hub.cli.output import print_fields, print_line, print_table
from lorary.hub.units import duration, size

if TYPE_CHECKING:
    from lorary.training.advisor.advise import Advice
    from lorary.training.advisor.bench import Start
    from lorary.training.estimate.plan import Estimate

_SHOWN = 6  # labels
_READY = "as it is"
_BASELINES = {"majority": "the commonest label", "mean": "the mean number"}


def show_advice(found: Advice) -> None:
    """Print the rows' figures, the starts and what they come to."""
    facts, recipe = found.facts, found.asked
    lengths = facts.lengths
    total = sum(facts.labels.values())
    shares = [f"{label} {count / total:.0%}" for label, count in facts.labels.items()]
    print_fields({
        "task": f"{recipe.task} on {recipe.base}",
        "rows": f"{facts.train:,} to train on, {facts.validation:,} for validation, {facts.held_out:,} held out",
        "labels": ", ".join([*shares[:_SHOWN], f"{len(shares) - _SHOWN} more"] if len(shares) > _SHOWN else shares),
        "tokens of a row": f"{lengths.middle} in the middle, {lengths.nearly_all} at most in 99 of 100, "
        f"{lengths.longest} at most (max_length {lengths.most})" if lengths else None,
        "tokens to a word": f"{facts.tokens_per_word:.1f}" if facts.tokens_per_word else None,
    })  # fmt: skip
    if found.starts:
        print_line("")
        _show_starts(found)
    print_line("")
    if found.settings:
        print_line("Advised:")
        for setting in found.settings:
            print_line(f"  {setting.key}: {setting.value}")
            print_line(f"      {setting.why}")
    else:
        print_line("Nothing speaks for other settings than the recipe's.")
    for hint in found.hints:
        print_line(f"- {hint}")
    if found.estimate is not None:
        print_line(f"- {_run_line(found.estimate)}")


def _run_line(found: Estimate) -> str:
    cost = found.cost
    run = "the run takes" if found.runs == 1 else f"each of {found.runs} runs takes"
    memory = f"{size(cost.peak)} of {size(found.available)}, " if found.fits else ""  # else a hint has said it
    return f"{run} {memory}{cost.steps:,} steps, time {duration(cost.seconds)}"


def _show_starts(found: Advice) -> None:
    metric = str(found.metric)
    rows = [_start_row(metric, start) for start in found.starts]
    alone = {_BASELINES.get(name, name): value for name, value in found.baselines.items()}
    if found.beside.spelling is not None:
        alone["spelling alone"] = found.beside.spelling
    rows[1:1] = [{**dict.fromkeys(rows[0], ""), "start": name, metric: f"{value:.3f}"} for name, value in alone.items()]
    print_table([row if any(start.ready is not None for start in found.starts) else _without(row) for row in rows])
    print_line("")
    how = f"{metric} of a linear probe on frozen states, cross-validated" if found.probed else f"{metric} as it is"
    print_line(f"{how}, over {found.rows} training rows; differences with their interval. Nothing was trained.")


def _start_row(metric: str, start: Start) -> dict[str, object]:
    return {
        "start": start.reference or "the base",
        "domain": start.domain or "",
        "task": start.task or "",
        metric: f"{start.score:.3f}",
        "beside the base": start.against_base.shown if start.against_base else "",
        _READY: "" if start.ready is None else f"{start.ready:.3f}",
    }


def _without(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != _READY}


def advice_json(found: Advice) -> dict[str, Any]:
    """All of it as plain values."""
    cost = found.estimate.cost if found.estimate else None
    return {
        "recipe": found.recipe.settings("json"),
        "rows": asdict(found.facts),
        "measured_rows": found.rows,
        "metric": found.metric,
        "probed": found.probed,
        "starts": [asdict(start) for start in found.starts],
        "baselines": found.baselines,
        "beside": asdict(found.beside),
        "noise": found.noise,
        "settings": [asdict(setting) for setting in found.settings],
        "hints": found.hints,
        "estimate": None if cost is None or found.estimate is None else {
            "peak_bytes": cost.peak, "available_bytes": found.estimate.available, "fits": found.estimate.fits,
            "steps": cost.steps, "seconds": cost.seconds, "runs": found.estimate.runs,
        },
    }  # fmt: skip
