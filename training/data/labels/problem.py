"""What a classifier's labels are: one of several, any number of them, or a number."""

from __future__ import annotations

import re
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

from lorary.hub.errors import DataError
from lorary.hub.manifest import MULTI_LABEL, REGRESSION, SINGLE_LABEL
from lorary.training.data.examples import Note
from lorary.training.data.files.source import Source
from lorary.training.data.roles import NUMBER
from lorary.training.data.shapes.written import LIST
from lorary.training.recipe import Recipe
from lorary.training.recipe.data_files import LABELLED_LINES, kind_of
from lorary.training.recipe.raw import shown

_MANY = 20
"""More classes than this mostly have names; amounts (marks, ages) have as many numbers."""

_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
"""A number as spreadsheets write one where a comma is the decimal sign, mostly with semicolons between the cells."""


def find_problem(recipe: Recipe, train: Source, note: Note) -> str | None:
    """The problem type of a recipe's rows, by transformers' names; None for other tasks than text classification.

    The recipe's own, else what most of the training rows' labels are: lists make it multi-label, numbers with a decimal
    point regression (in CSV and TSV files, which hold nothing but texts, lists and numbers so written), names and whole
    numbers single-label.

    Raises:
        DataError: the labels of a CSV or TSV file are numbers with a decimal comma.
    """
    data = recipe.data
    if recipe.task != "text-classification" or recipe.problem_type is not None:
        return recipe.problem_type
    if data.label_columns is not None or data.label_separator is not None:
        return MULTI_LABEL
    values = [row.values.get(data.columns.label or "label") for row in train.rows]
    written = kind_of(Path(train.shown)) in (".csv", ".tsv")
    kinds = Counter(_kind(value, written) for value in values)
    numbers = kinds["number"] + kinds["whole"]
    if data.labels is None and kinds["decimal comma"] and kinds["decimal comma"] + numbers > kinds["name"]:
        example = next(value for value in values if _kind(value, written) == "decimal comma")
        raise DataError(
            "labels",
            [
                f"{train.shown}: the labels look like numbers with a decimal comma ({shown(example)}); write them with "
                f"a point (if they are names, set problem_type to {SINGLE_LABEL}; if they are several in a row, set "
                "data.label_separator to ',')"
            ],
        )
    if kinds["list"] and has_labelled_lines(train):
        note(f"{kinds['list']} of {len(values)} lines have several labels: multi-label classification (problem_type)")
        return MULTI_LABEL
    if kinds["list"] + kinds["written list"] > kinds["name"] + numbers:
        names = f"; if they are names, set problem_type to {SINGLE_LABEL}" if kinds["written list"] else ""
        note(f"the labels are lists of names: multi-label classification (problem_type){names}")
        return MULTI_LABEL
    if data.labels is None and kinds["number"] and numbers > kinds["name"]:
        note(
            f"the labels are numbers with a decimal point: regression; if they are classes, set problem_type to "
            f"{SINGLE_LABEL}"
        )
        return REGRESSION
    if data.labels is None and kinds["whole"] > kinds["name"] and (count := len(set(map(str, values)))) > _MANY:
        note(f"the labels are {count} whole numbers: classes; if they are amounts, set problem_type to {REGRESSION}")
    return SINGLE_LABEL


def has_labelled_lines(source: Source) -> bool:
    """Were the rows lines that begin with their labels, any number of them?"""
    return kind_of(Path(source.shown)) in LABELLED_LINES


def _kind(value: Any, written: bool) -> str:
    if isinstance(value, (list, tuple)):
        return "list"
    if isinstance(value, (float, Decimal)):
        return "number"
    if isinstance(value, int) and not isinstance(value, bool):
        return "whole"
    text = value.strip() if isinstance(value, str) else ""
    if LIST.fullmatch(text):  # in any file, since a folder of CSV files has its texts from elsewhere
        return "written list"
    if not written:
        return "other" if value is None else "name"
    if NUMBER.fullmatch(text):
        return "whole" if text.lstrip("+-").isdecimal() else "number"
    if _DECIMAL_COMMA.fullmatch(text):
        return "decimal comma"
    return "other" if value is None else "name"
