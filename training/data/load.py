"""From files to checked examples: columns, values, labels, and the split into training, validation and held-out rows.

Nothing is trained on half-read data: any bad row stops the run, and all of them are listed.
"""

from __future__ import annotations

from typing import Any

from lorary.hub.manifest import MULTI_LABEL, REGRESSION
from lorary.training.data.examples import Examples, Note
from lorary.training.data.files import Source, read_source
from lorary.training.data.inner_columns import with_inner
from lorary.training.data.labels import find_labels, note_alike
from lorary.training.data.layouts import note_beside
from lorary.training.data.multi_label import is_multi_hot, join_columns, name_places
from lorary.training.data.numbers import find_numbers
from lorary.training.data.problem import find_problem
from lorary.training.data.roles import CHECKS, LABEL_CHECKS
from lorary.training.data.rows import check_rows
from lorary.training.data.splits import note_overlap, split_rows, split_validation
from lorary.training.data.tags import check_tags
from lorary.training.data.text import read_text
from lorary.training.data.weighing import check_weighing
from lorary.training.recipe import Recipe
from lorary.training.recipe.corpus import is_text


def load_data(recipe: Recipe, note: Note = lambda line: None) -> Examples:
    """Read, check and split a recipe's rows; ``note`` is given lines that the user should see.

    Raises:
        DataError: bad rows with file and row number, a missing column, unknown labels, a single class.
    """
    data = recipe.data
    columns = data.columns.named()

    def read(text: str, split: str, subset: str | None) -> Source:
        if columns.keys() == {"text"} and is_text(text):
            return read_text(text, data.sample_by, note)
        source = read_source(text, split=split, subset=subset, revision=data.revision)
        return with_inner(source, columns.values())

    given = {"train": read(data.train, data.train_split, data.subset)}
    if data.names_test:
        split = data.test_split or ("test" if data.test is None else data.train_split)
        given["test"] = read(data.test or data.train, split, data.subset)
    if data.names_validation:
        subset = data.subset if data.validation is None else None
        given["validation"] = read(data.validation or data.train, data.validation_split or data.train_split, subset)
    note_beside(given["train"], columns, note)
    problem = find_problem(recipe, given["train"], note)
    if data.label_columns is not None:
        columns["label"] = "label"
    if problem == MULTI_LABEL:
        given = {part: _label_lists(recipe, given["train"], source) for part, source in given.items()}
    checks = {**CHECKS, "label": LABEL_CHECKS[problem]} if problem else CHECKS
    parts = {part: check_rows(source, columns, checks) for part, source in given.items()}
    labels: tuple[str, ...] | None = None
    if problem == REGRESSION:
        labels = find_numbers(parts, columns, given["train"].shown)
    elif columns.keys() & {"label", "tags"}:
        names = data.labels or data.label_columns
        several = problem == MULTI_LABEL
        labels = find_labels(parts, columns, names, source=given["train"].shown, several=several)
        note_alike(labels, note)
    scheme = check_tags(recipe, parts, labels or (), note) if "tags" in columns else None
    check_weighing(recipe, labels, problem)
    if "test" not in parts:
        parts["train"], parts["test"] = split_rows(parts["train"], data.test_size or 0.2, recipe.training.seed, note)
    train, validation = split_validation(parts, recipe, note)
    note_overlap(train + validation, parts["test"], note)
    provenance: dict[str, Any] = {part: source.provenance() for part, source in given.items()}
    provenance["rows"] = {"train": len(train), "validation": len(validation), "test": len(parts["test"])}
    if scheme is not None:
        provenance["tag_scheme"] = scheme
    return Examples(train, validation, parts["test"], labels, provenance, problem)


def _label_lists(recipe: Recipe, train: Source, source: Source) -> Source:
    """A source with a list of names in each row's label, however its file holds them."""
    data = recipe.data
    if data.label_columns is not None:
        return join_columns(source, data.label_columns, into="label")
    column = data.columns.label or "label"
    return name_places(source, column, data.labels) if is_multi_hot(train, column) else source
