"""From files to checked examples: columns, values, labels, and the split into training, validation and held-out rows.

Nothing is trained on half-read data: any bad row stops the run, and all of them are listed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.files import Row, Source, read_source, report
from lorary.training.recipe import Recipe
from lorary.training.recipe_yaml import nearest, shown
from lorary.training.roles import CHECKS, TARGET_ROLES, row_problem

FEWEST_VALIDATION_ROWS = 8

Note = Callable[[str], None]


@dataclass(frozen=True)
class Example:
    """A checked row: its values by role (labels and tags as names), and where it came from."""

    values: Mapping[str, Any]
    place: str

    @property
    def inputs(self) -> str:
        """What the model is given, as one text that is equal for equal inputs."""
        given = {role: value for role, value in self.values.items() if role not in TARGET_ROLES}
        return json.dumps(given, sort_keys=True)


@dataclass(frozen=True)
class Examples:
    """All rows of a run. ``labels`` are names in the order of their ids; None where the task has none."""

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...] | None
    provenance: Mapping[str, Any]


def load_data(recipe: Recipe, note: Note = lambda line: None) -> Examples:
    """Read, check and split a recipe's rows; ``note`` is given lines that the user should see.

    Raises:
        DataError: bad rows with file and row number, a missing column, unknown labels, a single class.
    """
    data = recipe.data
    columns = data.columns.named()
    given = {"train": read_source(data.train, split=data.train_split, subset=data.subset, revision=data.revision)}
    if data.test is not None or data.test_split is not None:
        split = data.test_split or ("test" if data.test is None else data.train_split)
        given["test"] = read_source(data.test or data.train, split=split, subset=data.subset, revision=data.revision)
    if data.validation is not None:
        given["validation"] = read_source(data.validation, split=data.train_split, revision=data.revision)
    parts = {part: check_rows(source, columns) for part, source in given.items()}
    labels = _labels(parts, columns, data.labels) if columns.keys() & {"label", "tags"} else None
    if "test" not in parts:
        parts["train"], parts["test"] = split_rows(parts["train"], data.test_size or 0.2, recipe.training.seed, note)
    train, validation = _validation(parts, recipe, note)
    _note_overlap(train + validation, parts["test"], note)
    provenance = {part: source.provenance() for part, source in given.items()}
    provenance["rows"] = {"train": len(train), "validation": len(validation), "test": len(parts["test"])}
    return Examples(train, validation, parts["test"], labels, provenance)


def check_rows(source: Source, columns: Mapping[str, str]) -> tuple[Example, ...]:
    """The rows of a source by role.

    Raises:
        DataError: a column that no row has, and every bad value with its file and row.
    """
    seen = {column for row in source.rows for column in row.values}
    absent = [
        f"{source.shown}: no column {column!r} (for {role}); there are {', '.join(sorted(seen))}"
        + (nearest(column, seen) or f"; name it with data.columns.{role}")
        for role, column in columns.items()
        if column not in seen
    ]
    if absent:
        raise DataError("columns", absent)
    problems = [problem for row in source.rows for problem in _row_problems(row, columns)]
    if problems:
        raise report("rows", problems)
    return tuple(
        Example({role: row.values[column] for role, column in columns.items()}, row.place) for row in source.rows
    )


def _row_problems(row: Row, columns: Mapping[str, str]) -> Iterable[str]:
    found = False
    for role, column in columns.items():
        if column not in row.values:
            problem: str | None = f"missing; the row has {', '.join(sorted(row.values)) or 'no columns'}"
        else:
            problem = CHECKS[role](row.values[column])
        if problem:
            found = True
            yield f"{row.place}, {column}: {problem}"
    if not found:
        problem = row_problem({role: row.values[column] for role, column in columns.items()})
        if problem:
            yield f"{row.place}: {problem}"


def _labels(
    parts: dict[str, tuple[Example, ...]], columns: Mapping[str, str], given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The label names in the order of their ids; makes names of the numbers in ``parts``."""
    role = "label" if "label" in columns else "tags"
    for part, examples in parts.items():
        parts[part] = tuple(_with_names(example, role, given) for example in examples)
    if given is not None:
        repeated = sorted(name for name, count in Counter(given).items() if count > 1)
        if repeated:
            raise DataError("data.labels", [f"{name!r} is listed twice" for name in repeated])
        labels = given
    else:
        labels = tuple(sorted({name for example in parts["train"] for name in _names(example, role)}, key=_order))
    known = set(labels)
    problems = [
        f"{example.place}, {columns[role]}: unknown label {shown(name)}; "
        + ("data.labels has" if given is not None else "the training rows have")
        + f" {_some(labels)}{nearest(name, labels)}"
        for examples in parts.values()
        for example in examples
        for name in dict.fromkeys(_names(example, role))
        if name not in known
    ]
    if problems:
        raise report("labels", problems)
    used = {name for example in parts["train"] for name in _names(example, role)}
    if len(used) < 2:
        raise DataError("labels", [f"every training row has the label {_some(sorted(used))}; expected at least two"])
    return labels


def _with_names(example: Example, role: str, given: tuple[str, ...] | None) -> Example:
    def name(value: str | int) -> str:
        if isinstance(value, int) and given is not None and 0 <= value < len(given):
            return given[value]
        return str(value)

    value = example.values[role]
    named = [name(item) for item in value] if isinstance(value, list) else name(value)
    return Example({**example.values, role: named}, example.place)


def _names(example: Example, role: str) -> Sequence[str]:
    value = example.values[role]
    return value if isinstance(value, list) else [value]


def _order(name: str) -> tuple[int, int, str]:
    """Numbers by value, before names by alphabet: '10' follows '9'."""
    return (0, int(name), name) if name.lstrip("-").isdecimal() else (1, 0, name)


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def split_rows(
    examples: tuple[Example, ...], share: float, seed: int, note: Note
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Split off ``share`` of the rows, seeded; by label in equal parts where rows have one. Keeps the rows' order.

    Raises:
        DataError: too few rows to split.
    """
    from sklearn.model_selection import train_test_split

    count = max(1, round(len(examples) * share))
    if len(examples) - count < 1:
        raise DataError("data", [f"{len(examples)} rows are too few to split {share:g} of them off"])
    labels = [example.values.get("label") for example in examples]
    counts = Counter(labels)
    # A label with one row can't be on both sides; the model has to see it, so it stays with the training rows.
    indices = [index for index, label in enumerate(labels) if label is None or counts[label] > 1]
    classes = {labels[index] for index in indices}
    stratify = [labels[index] for index in indices] if len(classes) > 1 else None
    if stratify and not len(classes) <= count <= len(indices) - len(classes):
        note(f"{count} rows can't hold each of {len(classes)} labels in proportion: split without regard to labels")
        stratify, indices = None, list(range(len(examples)))
    _, chosen = train_test_split(indices, test_size=count, random_state=seed, stratify=stratify)
    held = set(chosen)
    kept = tuple(example for index, example in enumerate(examples) if index not in held)
    return kept, tuple(example for index, example in enumerate(examples) if index in held)


def _validation(
    parts: Mapping[str, tuple[Example, ...]], recipe: Recipe, note: Note
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Training rows and those that early stopping looks at: never the held-out rows, which would flatter the result."""
    train = parts["train"]
    if not recipe.training.early_stopping:
        return train, ()
    if "validation" in parts:
        return train, parts["validation"]
    share = recipe.data.validation_size or 0.0
    if share * len(train) < FEWEST_VALIDATION_ROWS:
        if share:
            note(f"no early stopping: {share:g} of {len(train)} training rows are too few to judge by")
        return train, ()
    return split_rows(train, share, recipe.training.seed, note)


def _note_overlap(train: Sequence[Example], test: Sequence[Example], note: Note) -> None:
    known = {example.inputs for example in train}
    twice = [example for example in test if example.inputs in known]
    if twice:
        note(
            f"{len(twice)} of {len(test)} held-out rows are among the training rows too (first: {twice[0].place}); "
            "their metrics flatter the adapter"
        )
