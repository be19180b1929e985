"""Cross-validation's rows: every row is held out once, in parts of like composition (scikit-learn's folds)."""

from __future__ import annotations

import random
import statistics
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.data import Example, Examples, Note
from lorary.training.data.splits import split_validation, strata, whole_groups
from lorary.training.recipe import Recipe


def all_rows(recipe: Recipe, data: Examples) -> tuple[tuple[Example, ...], bool]:
    """The rows that the folds are made of, and whether the recipe names held-out rows, which then aren't among them."""
    rows = data.train
    if not recipe.data.names_validation:
        rows += data.validation
    return (rows, True) if recipe.data.names_test else (rows + data.test, False)


def fold_data(recipe: Recipe, data: Examples, rows: Sequence[Example], note: Note) -> Iterator[Examples]:
    """The data of each fold's run, in parts as :func:`split_rows` makes them: by label, and with contexts whole
    (and the positives of a text).

    Raises:
        DataError: there are fewer rows than folds ask for, or fewer contexts than folds.
    """
    parts = list(_parts(recipe, rows, note))
    _note_torn(rows, parts, note)
    for kept, held in parts:
        inside = {"train": tuple(rows[index] for index in kept)}
        if recipe.data.names_validation:
            inside["validation"] = data.validation
        train, validation = split_validation(inside, recipe, lambda line: None)
        test = tuple(rows[index] for index in held)
        yield replace(data, train=train, validation=validation, test=test)


def _parts(recipe: Recipe, rows: Sequence[Example], note: Note) -> Iterator[tuple[Any, Any]]:
    """Each fold's training rows and held-out rows, by number."""
    from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

    count, seed = recipe.training.folds or 2, recipe.training.seed
    if len(rows) < 2 * count:
        raise DataError("data", [f"{len(rows)} rows are too few for {count} folds; expected at least {2 * count}"])
    groups = whole_groups(rows)
    if groups is not None:
        different = len(set(groups))
        if different < count:
            what = "contexts" if "context" in rows[0].values else "texts with their positives"
            raise DataError("data", [f"{different} {what} are too few for {count} folds, which keep each one whole"])
        # It puts the largest groups apart first and equal ones in their order, which is what the seed decides.
        order = random.Random(seed).sample(range(different), different)
        ranks = dict(zip(dict.fromkeys(groups), order, strict=True))
        return GroupKFold(count).split(rows, groups=[ranks[group] for group in groups])
    labels = strata(rows)
    if None in labels or max(Counter(labels).values()) < count:
        return KFold(count, shuffle=True, random_state=seed).split(labels)
    _note_rare(rows, count, note)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The least populated class", UserWarning)  # as noted
        return iter(list(StratifiedKFold(count, shuffle=True, random_state=seed).split(labels, labels)))


def _note_rare(rows: Sequence[Example], count: int, note: Note) -> None:
    """Tell ``note`` of the rarest label, where there are fewer rows of it than folds."""
    found = [example.values["label"] for example in rows]
    counts = Counter(name for label in found for name in (label if isinstance(label, list) else [label]))
    rarest = min(counts, key=lambda label: (counts[label], label))
    if counts[rarest] < count:
        note(f"{rarest!r} has {counts[rarest]} rows, fewer than {count} folds: not every fold holds one of them out")


def _note_torn(rows: Sequence[Example], parts: Sequence[tuple[Any, Any]], note: Note) -> None:
    """Tell ``note`` of rows that are there twice, where one is trained on and the other held out."""
    inputs = [example.inputs for example in rows]
    torn: list[int] = []
    for kept, held in parts:
        known = {inputs[place] for place in kept}
        torn += [index for index in held if inputs[index] in known]
    if torn:
        note(
            f"{len(torn)} of {len(rows)} rows are held out by a fold that trains on the same once more (first: "
            f"{rows[min(torn)].place}); their metrics flatter the adapter"
        )


def final_recipe(
    recipe: Recipe, best_epochs: Sequence[float | None], labels: Sequence[str],
    thresholds: Sequence[Sequence[float]],
) -> Recipe:  # fmt: skip
    """The recipe of the run on all rows: as many epochs as the folds' best took, since no rows are left to stop by.

    Part of an epoch stays one, and more are whole ones. Nor are any rows left to find ``thresholds`` on: each of
    ``labels`` has the median of those that the folds found.
    """
    known = [epoch for epoch in best_epochs if epoch is not None]
    changes: dict[str, Any] = {"early_stopping": 0}
    if recipe.training.threshold in (None, "tuned"):
        columns = zip(labels, zip(*thresholds, strict=True), strict=True) if thresholds else ()
        changes["threshold"] = {label: statistics.median(values) for label, values in columns} or None
    if known:
        middle = statistics.median(known)
        changes |= {"epochs": float(round(middle)) if middle >= 1 else middle, "max_steps": None, "min_steps": None}
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=changes)})
