"""Which rows are trained on, which early stopping looks at, and which are held out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.data.examples import Example, Note
from lorary.training.recipe import Recipe
from lorary.training.recipe.tasks import TASK_FACTS

VALIDATION_SHARE = 0.1
"""Of the training rows, where the recipe doesn't say."""

FEWEST_VALIDATION_ROWS = 8
"""The least that a recipe can ask for; what a task takes by itself is in its facts."""


def split_rows(
    examples: tuple[Example, ...], share: float, seed: int, note: Note
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split off ``share`` of the rows, seeded; by label in equal parts where rows have one. Keeps the rows' order.

    Questions about one context stay together, as do the positives of one text: a held-out question about a text that
    was trained on flatters.

    Raises:
        DataError: too few rows to split.
    """
    from sklearn.model_selection import train_test_split

    count = max(1, round(len(examples) * share))
    if len(examples) - count < 1:
        raise DataError("data", [f"{len(examples)} rows are too few to split {share:g} of them off"])
    if (groups := whole_groups(examples)) is not None:
        return _parted(examples, _held_groups(groups, count, seed))
    labels = strata(examples)
    counts = Counter(labels)
    # A label with one row can't be on both sides; the model has to see it, so it stays with the training rows.
    indices = [index for index, label in enumerate(labels) if label is None or counts[label] > 1]
    classes = {labels[index] for index in indices}
    stratify = [labels[index] for index in indices] if len(classes) > 1 else None
    scarce = f"{count} rows can't hold each of {len(counts)} labels in proportion: "
    if count > len(indices) - len(classes):
        note(scarce + "split without regard to labels")
        stratify, indices = None, list(range(len(examples)))
    elif stratify and count < len(classes):
        note(scarce + "split at random, but for one row of each label, which is trained on")
        first = {label: index for index, label in reversed(list(enumerate(labels)))}
        stratify, indices = None, sorted(set(indices) - set(first.values()))
    _, chosen = train_test_split(indices, test_size=count, random_state=seed, stratify=stratify)
    held = set(chosen)
    if stratify:
        # In proportion, a label of few rows may go to the other side with all of them.
        seen = {label for index, label in enumerate(labels) if index not in held}
        held -= {labels.index(label) for label in classes - seen}
    return _parted(examples, held)


def whole_groups(examples: Sequence[Example]) -> list[Any] | None:
    """What each row shares with those that stay on its side: a context, or the text of several positives. None where
    rows share nothing, or all the same."""
    contexts = [example.values.get("context") for example in examples]
    if len(set(contexts)) > 1:
        return contexts
    texts = [example.values["text"] for example in examples if "positive" in example.values]
    return texts if 1 < len(set(texts)) < len(texts) else None


def _held_groups(groups: Sequence[Any], count: int, seed: int) -> set[int]:
    """The rows of groups in random order, until ``count`` rows are there; one group at least is left."""
    places: dict[Any, list[int]] = {}
    for index, group in enumerate(groups):
        places.setdefault(group, []).append(index)
    order = list(places)
    random.Random(seed).shuffle(order)
    held: set[int] = set()
    for group in order[:-1]:
        if len(held) >= count:
            break
        held |= set(places[group])
    return held


def _parted(examples: tuple[Example, ...], held: set[int]) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    kept = tuple(example for index, example in enumerate(examples) if index not in held)
    return kept, tuple(example for index, example in enumerate(examples) if index in held)


def strata(examples: Sequence[Example]) -> list[str | None]:
    """By what rows are split in equal parts: their label; the rarest of several; None where labels are numbers.

    The rarest label decides, since it is the one that may be missing on a side (Sechidis et al. 2011 begin there too).
    """
    labels = [example.values.get("label") for example in examples]
    counts = Counter(name for label in labels if isinstance(label, list) for name in label)

    def stratum(label: Any) -> str | None:
        if isinstance(label, list):
            return min(label, key=lambda name: (counts[name], name), default="")
        return label if isinstance(label, str) else None

    return [stratum(label) for label in labels]


def split_validation(
    parts: Mapping[str, tuple[Example, ...]], recipe: Recipe, note: Note
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Training rows and those that early stopping looks at: never the held-out rows, which would flatter the result."""
    train = parts["train"]
    if not recipe.training.early_stopping:
        return train, ()
    if "validation" in parts:
        return train, parts["validation"]
    asked = recipe.data.validation_size
    share = VALIDATION_SHARE if asked is None else asked
    if share * len(train) < fewest_validation(recipe):
        if share:
            note(
                f"no early stopping: {share:g} of {len(train)} training rows are too few to judge by; "
                f"a data.validation_size that makes {FEWEST_VALIDATION_ROWS} rows takes them all the same"
            )
        return train, ()
    return split_rows(train, share, recipe.training.seed, note)


def fewest_validation(recipe: Recipe) -> int:
    """With fewer validation rows there are none: what the task can judge by, or less where the recipe asks for them."""
    asked = recipe.data.names_validation or recipe.data.validation_size is not None
    return FEWEST_VALIDATION_ROWS if asked else TASK_FACTS[recipe.task].fewest_validation


def note_overlap(train: Sequence[Example], test: Sequence[Example], note: Note) -> None:
    """Tell ``note`` of held-out rows that are among the training rows too."""
    known = {example.inputs for example in train}
    twice = [example for example in test if example.inputs in known]
    if twice:
        note(
            f"{len(twice)} of {len(test)} held-out rows are among the training rows too (first: {twice[0].place}); "
            "their metrics flatter the adapter"
        )
