"""From files to checked examples: columns, values, labels, and the split into training, validation and held-out rows.

Nothing is trained on half-read data: any bad row stops the run, and all of them are listed.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.manifest import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from lorary.training.data.examples import Example, Examples, Note
from lorary.training.data.files.class_folders import read_class_folders
from lorary.training.data.files.contents import Manner
from lorary.training.data.files.source import Source, for_each, read_source
from lorary.training.data.files.text import read_text
from lorary.training.data.incomplete import without_incomplete
from lorary.training.data.labels.multi_label import as_lists, is_multi_hot, join_columns, name_places, split_texts
from lorary.training.data.labels.names import (
    find_labels,
    known_labels,
    note_alike,
    note_counted,
    note_no_label,
    note_several,
)
from lorary.training.data.labels.numbers import find_numbers, write_whole
from lorary.training.data.labels.problem import find_problem, has_labelled_lines
from lorary.training.data.labels.tags import check_tags
from lorary.training.data.labels.weighing import check_weighing
from lorary.training.data.roles import CHECKS, LABEL_CHECKS
from lorary.training.data.rows import check_rows
from lorary.training.data.shapes.answers import note_places
from lorary.training.data.shapes.inner_columns import with_inner
from lorary.training.data.shapes.known import note_beside, note_larger_form
from lorary.training.data.shapes.lists_of_texts import pair_columns, with_pairs, with_written_lists
from lorary.training.data.shapes.sentences import with_sentences
from lorary.training.data.shapes.written_chats import with_written_chats
from lorary.training.data.splits import note_overlap, split_rows, split_validation
from lorary.training.recipe import Recipe
from lorary.training.recipe.corpus import is_text
from lorary.training.recipe.data_files import kind_of
from lorary.training.recipe.tasks import TASK_FACTS


def load_data(recipe: Recipe, note: Note = lambda line: None) -> Examples:
    """Read, check and split a recipe's rows; ``note`` is given lines that the user should see.

    Raises:
        DataError: bad rows with file and row number, a missing column, unknown labels, a single class.
    """
    data = recipe.data
    given = {"train": _read(recipe, data.train, data.train_split, data.subset, note)}
    if data.names_test:
        split = data.test_split or ("test" if data.test is None else data.train_split)
        given["test"] = _read(recipe, data.test or data.train, split, data.subset, note)
    if data.names_validation:
        subset = data.subset if data.validation is None else None
        split = data.validation_split or data.train_split
        given["validation"] = _read(recipe, data.validation or data.train, split, subset, note)
    checked = _check(recipe, given, note)
    parts = checked.parts
    check_weighing(recipe, checked.labels, checked.problem)
    # Folds hold every row out once, so what is said of the rows of this split says nothing.
    of_split: Note = (lambda line: None) if recipe.training.folds else note
    if "test" not in parts:
        share = data.test_size or 0.2
        parts["train"], parts["test"] = split_rows(parts["train"], share, recipe.training.seed, of_split)
    train, validation = split_validation(parts, recipe, of_split)
    note_overlap(train + validation, parts["test"], note if data.names_test else of_split)
    provenance: dict[str, Any] = {part: source.provenance() for part, source in given.items()}
    provenance["rows"] = {"train": len(train), "validation": len(validation), "test": len(parts["test"])}
    if checked.scheme is not None:
        provenance["tag_scheme"] = checked.scheme
    return Examples(train, validation, parts["test"], checked.labels, provenance, checked.problem)


def load_rows(recipe: Recipe, note: Note = lambda line: None) -> Examples:
    """Read and check the rows that ``data.train`` names, to measure on: all are held-out rows, and none is trained on.

    Raises:
        DataError: as :func:`load_data`, but they may all have one label.
    """
    source = _read(recipe, recipe.data.train, recipe.data.train_split, recipe.data.subset, note)
    checked = _check(recipe, {"train": source}, note, learned=False)
    return Examples((), (), checked.parts["train"], checked.labels, {"test": source.provenance()}, checked.problem)


def _read(recipe: Recipe, text: str, split: str, subset: str | None, note: Note) -> Source:
    data, columns = recipe.data, recipe.data.columns.named()
    if columns.keys() == {"text"} and is_text(text) and TASK_FACTS[recipe.task].corpus:
        return read_text(text, data.sample_by, note, data.encoding)
    if recipe.task == "text-classification" and Path(text).expanduser().is_dir() and is_text(text):
        source = read_class_folders(text, data.columns, data.encoding, note)
    else:
        manner = Manner(data.header, data.separator, data.encoding, split)
        read = read_source(text, manner, subset=subset, revision=data.revision)
        source = with_inner(read, columns.values())
        source = with_written_chats(source, columns, note)
        source = with_written_lists(source, columns, note)
        if "tokens" in columns:
            source = with_sentences(source, data, note)
    if data.incomplete == "drop" or data.unlabelled is not None:
        source = without_incomplete(source, data, note)
    return with_pairs(source, columns, note) if "positive" in columns else source


@dataclass(frozen=True)
class _Checked:
    """Checked rows by part, and what their labels are; ``scheme`` is that of tags."""

    parts: dict[str, tuple[Example, ...]]
    labels: tuple[str, ...] | None
    problem: str | None
    scheme: str | None


def _check(recipe: Recipe, given: dict[str, Source], note: Note, learned: bool = True) -> _Checked:
    data, columns = recipe.data, pair_columns(recipe.data.columns.named())
    note_beside(given["train"], columns, note)
    if learned:
        note_larger_form(given["train"], columns, TASK_FACTS[recipe.task].forms, note)
    problem = find_problem(recipe, given["train"], note)
    if data.label_columns is not None:
        columns["label"] = "label"
    if problem == MULTI_LABEL:
        given = _label_lists(recipe, given)
    if problem == SINGLE_LABEL and kind_of(Path(given["train"].shown)) in (".csv", ".tsv"):
        given = write_whole(given, data.columns.label or "label")
    checks = dict(CHECKS)
    if problem:
        checks["label"] = LABEL_CHECKS[problem]
    if data.labels is not None and problem != REGRESSION:
        checks |= {role: known_labels(data.labels, checks[role]) for role in columns.keys() & {"label", "tags"}}
    parts = for_each(given, lambda source: check_rows(source, columns, checks))
    shown = given["train"].shown
    labels: tuple[str, ...] | None = None
    if problem == REGRESSION:
        labels = find_numbers(parts, columns, shown, learned)
    elif columns.keys() & {"label", "tags"}:
        names = data.labels or data.label_columns
        role = "label" if "label" in columns else "tags"
        note_counted(data.labels or (), (row.values[role] for rows in parts.values() for row in rows), note)
        labels = find_labels(parts, columns, names, source=shown, several=problem == MULTI_LABEL, learned=learned)
        note_alike(labels, note)
        if problem == SINGLE_LABEL:
            note_several(labels, note)
            note_no_label(labels, Counter(example.values["label"] for example in parts["train"]), note)
    if "context" in columns:
        note_places(parts["train"], note)
    scheme = check_tags(recipe, parts, labels or (), note) if "tags" in columns else None
    return _Checked(parts, labels, problem, scheme)


def _label_lists(recipe: Recipe, given: dict[str, Source]) -> dict[str, Source]:
    """Sources with a list of names in each row's label, however their files hold them."""
    data, column = recipe.data, recipe.data.columns.label or "label"
    if (names := data.label_columns) is not None:
        return for_each(given, lambda source: join_columns(source, names, into="label"))
    given = for_each(given, lambda source: split_texts(source, column, data.label_separator))
    given = {part: as_lists(source, column) if has_labelled_lines(source) else source for part, source in given.items()}
    if not is_multi_hot(given["train"], column):
        return given
    return for_each(given, lambda source: name_places(source, column, data.labels))
