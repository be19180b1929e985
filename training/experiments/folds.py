"""Cross-validation's rows: every row is held out once, in parts of like composition (scikit-learn's folds)."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.data import Example, Examples, Note
from lorary.training.data.splits import split_validation
from lorary.training.recipe import Recipe


def all_rows(recipe: Recipe, data: Examples) -> tuple[tuple[Example, ...], bool]:
    """The rows that the folds are made of, and whether the recipe names held-out rows, which then aren't among them."""
    given = recipe.data.test is not None or recipe.data.test_split is not None
    rows = data.train
    if recipe.data.validation is None:
        rows += data.validation
    return (rows, True) if given else (rows + data.test, False)


def fold_data(recipe: Recipe, data: Examples, rows: Sequence[Example], note: Note) -> Iterator[Examples]:
    """The data of each fold's run, by label in equal parts where rows have one label each.

    Raises:
        DataError: there are fewer rows than folds.
    """
    from sklearn.model_selection import KFold, StratifiedKFold

    count, seed = recipe.training.folds or 2, recipe.training.seed
    if len(rows) < 2 * count:
        raise DataError("data", [f"{len(rows)} rows are too few for {count} folds; expected at least {2 * count}"])
    labels = [example.values.get("label") for example in rows]
    named = all(isinstance(label, str) for label in labels)
    counts = Counter(str(label) for label in labels)
    if named and min(counts.values()) >= count:
        parts = StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels)
    else:
        if named:
            rarest = min(counts, key=lambda label: (counts[label], label))
            note(f"{rarest!r} has {counts[rarest]} rows, fewer than {count} folds: split without regard to labels")
        parts = KFold(count, shuffle=True, random_state=seed).split(labels)
    for kept, held in parts:
        inside = {"train": tuple(rows[index] for index in kept)}
        if recipe.data.validation is not None:
            inside["validation"] = data.validation
        train, validation = split_validation(inside, recipe, lambda line: None)
        test = tuple(rows[index] for index in held)
        yield replace(data, train=train, validation=validation, test=test)


def final_recipe(
    recipe: Recipe, best_epochs: Sequence[float | None], labels: Sequence[str],
    thresholds: Sequence[Sequence[float] | None],
) -> Recipe:  # fmt: skip
    """The recipe of the run on all rows: as many epochs as the folds' best took, since no rows are left to stop by.

    Nor are any left to find thresholds on: where the folds found theirs, each of ``labels`` has their median.
    """
    known = [epoch for epoch in best_epochs if epoch is not None]
    changes: dict[str, Any] = {"early_stopping": 0}
    found = [values for values in thresholds if values is not None]
    if recipe.training.threshold in (None, "tuned"):
        columns = zip(labels, zip(*found, strict=True), strict=True) if found else ()
        changes["threshold"] = {label: statistics.median(values) for label, values in columns} or None
    if known:
        changes |= {"epochs": max(1.0, float(round(statistics.median(known)))), "min_steps": None}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})
