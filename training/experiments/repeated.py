"""A recipe run several times: with several seeds, or fold by fold. One run's adapter is kept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorary.adapters.predict.text_classification import THRESHOLD
from lorary.hub.metrics import lower_is_better
from lorary.training.data import Examples
from lorary.training.experiments.folds import all_rows, final_recipe, fold_data
from lorary.training.experiments.session import Session, validation_metrics
from lorary.training.experiments.summary import means, shown, summarise
from lorary.training.one_run import Finished, save_run
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.report.content import Report
from lorary.training.report.folds import crossed, with_curves
from lorary.training.save import make_manifest
from lorary.training.strategies.parent import Parent
from lorary.training.tasks import make_task


def run_seeds(recipe: Recipe, data: Examples, parent: Parent | None, session: Session, files: Path) -> Finished:
    """A run for each seed, on the same rows; the best on the validation rows is kept, never the best held-out.

    Returns:
        The run that is kept, with its adapter in ``files`` and the others' figures in its provenance.
    """
    first = recipe.training.seed
    seeds = range(first, first + recipe.training.seeds)
    runs: list[Finished] = []
    validations: list[float | None] = []
    for seed in seeds:
        finished = session.run(_with_training(recipe, seed=seed, seeds=1), data, f"seed {seed}", parent)
        name = finished.prepared.task.main_metric
        validations.append((validation_metrics(finished) or {}).get(name))
        save_run(finished, _beside(files, seed))
        session.release(finished)
        runs.append(finished)
    known = [value for value in validations if value is not None]
    if len(known) == len(seeds):
        sign = -1 if lower_is_better(name) else 1
        best = max(range(len(seeds)), key=lambda index: (sign * known[index], -index))
        why = f"the best {name} on {len(data.validation)} validation rows"
        if known.count(known[best]) > 1:
            why += ", the first of equals"
    else:
        best, why = 0, "there are no validation rows to choose by, so it is the recipe's own seed"
    figures = summarise([finished.metrics["test"] for finished in runs])
    told = {
        "seeds": list(seeds), "kept": seeds[best], "because": why, "metric": name,
        "validation": validations, "metrics": figures,
    }  # fmt: skip
    session.reporter.note(
        f"{len(seeds)} seeds: held-out {name} {shown(figures[name])}; seed {seeds[best]} is kept: {why}"
    )
    _beside(files, seeds[best]).rename(files)
    return _tell(runs[best], {"seeds": told}, files)


def run_folds(recipe: Recipe, data: Examples, parent: Parent | None, session: Session, files: Path) -> Finished:
    """A run for each fold, measured on the rows it hasn't seen; then one on all rows, which is kept.

    Returns:
        The run on all rows, with its adapter in ``files``. Its metrics are the folds' means, unless the recipe names
        held-out rows.
    """
    rows, given = all_rows(recipe, data)
    one = _with_training(recipe, folds=None)
    runs: list[Finished] = []
    count = recipe.training.folds or 0
    for number, fold in enumerate(fold_data(recipe, data, rows, session.reporter.note), start=1):
        finished = session.run(one, fold, f"fold {number} of {count}", parent)
        session.release(finished)
        runs.append(finished)
    name = runs[0].prepared.task.main_metric
    by_split = {split: [finished.metrics[split] for finished in runs] for split in runs[0].metrics}
    figures = summarise(by_split["test"])
    epochs = [finished.best_epoch for finished in runs]
    last = final_recipe(one, epochs, data.labels or (), _thresholds(runs, session.reporter))
    # Without held-out rows of their own, the last fold's stand in for golden logits and the gate, not for a figure.
    counts = {"train": len(rows), "validation": 0, "test": len(data.test) if given else 0}
    whole = replace(
        data, train=rows, validation=(), held_out=given, provenance={**data.provenance, "rows": counts},
        test=data.test if given else runs[-1].prepared.data.test,
    )  # fmt: skip
    finished = session.run(last, whole, "all rows", parent)
    settled = finished.prepared.recipe.training
    told = {
        "count": count, "metric": name, "metrics": figures, "rows": [len(run.prepared.data.test) for run in runs],
        "epochs": settled.epochs if settled.max_steps is None else None,
        "steps": finished.trained.provenance["steps"], "best_epochs": epochs,
    }  # fmt: skip
    what = "all of them" if given else "all rows, so its held-out metrics are the folds' means"
    session.reporter.note(
        f"{count} folds: held-out {name} {shown(figures[name])}; the adapter kept was trained on {what}"
    )
    if not given:
        finished = replace(finished, metrics={split: means(values) for split, values in by_split.items()})
    finished = replace(finished, report=_report_of_folds(finished, runs, given))
    save_run(finished, files)
    return _tell(finished, {"folds": told}, files)


def _thresholds(runs: Sequence[Finished], reporter: Reporter) -> list[tuple[float, ...]]:
    """What each fold found, from which score on a row has a label; else what all that they held out says.

    Empty where the task finds none.
    """
    prepared = runs[0].prepared
    found = [own for run in runs if (own := run.prepared.task.thresholds()) is not None]
    if found or not prepared.task.decides:
        return found
    task = make_task(prepared.recipe, prepared.data.labels, prepared.data.problem_type)
    task.decide(*_held_out(runs), reporter.note)
    reporter.note(f"the adapter kept has these, and the folds' held-out figures are those from {THRESHOLD} on")
    return [task.thresholds() or (THRESHOLD,) * len(task.labels)]


def _held_out(runs: Sequence[Finished]) -> tuple[list[Any], list[Any]]:
    """What each row came to in the run that hadn't seen it, and what it should."""
    outcomes = [outcome for run in runs for outcome in run.outcomes]
    return outcomes, [gold for run in runs for gold in run.prepared.test.golds]


def _report_of_folds(finished: Finished, runs: Sequence[Finished], given: bool) -> Report | None:
    """The report of the run on all rows with what the folds' runs say; ``given``: it has held-out rows of its own."""
    folds = [run.report for run in runs if run.report]
    if finished.report is None or not folds:
        return None
    if given:
        return with_curves(finished.report, folds)
    ready = finished.prepared
    mistakes = ready.task.mistakes(*_held_out(runs))
    return crossed(finished.report, folds, finished.metrics, mistakes, ready.recipe.report.rows)


def _beside(files: Path, seed: int) -> Path:
    """Where a seed's adapter waits; what a killed run has left there is written over."""
    return files.with_name(f"{files.name}-seed-{seed}")


def _with_training(recipe: Recipe, **changes: Any) -> Recipe:
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})


def _tell(finished: Finished, more: Mapping[str, Any], files: Path) -> Finished:
    """Put what the other runs came to into the kept one's provenance, which no digest depends on."""
    ready = finished.prepared
    trained = replace(finished.trained, provenance={**finished.trained.provenance, **more})
    make_manifest(ready.base, ready.task, ready.recipe, trained, ready.max_length).write(files)
    return replace(finished, trained=trained)
