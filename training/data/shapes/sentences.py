"""Sentences of which a table has a word in each row, beside the sentence that it is of.

Some say so in each row (``sentence_id``), others in a sentence's first row alone (Kaggle's ``ner_dataset.csv``:
``Sentence: 1``, then empty cells).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from lorary.hub.errors import DataError
from lorary.training.data.examples import Note
from lorary.training.data.files.source import Row, Source, bad_rows
from lorary.training.data.incomplete import HINT, is_missing
from lorary.training.data.shapes.written import LIST
from lorary.training.recipe.raw import nearest, shown
from lorary.training.recipe.sections import Data

_KEY = "data.sentence_column"

# How tables mostly call these columns, but for case and what stands between words.
_SENTENCES = (
    "sentence",
    "sentenceid",
    "sentenceidx",
    "sentencenumber",
    "sentenceno",
    "sentid",
    "sentidx",
    "sent",
    "sid",
)
_WORDS = ("word", "words", "token", "tokens")
_TAGS = ("tag", "tags", "label", "labels", "nertag", "nertags", "ner", "entity", "pos", "postag", "upos")
_ROLES = {"tokens": _WORDS, "tags": _TAGS}

_MOST = 0.9
"""The share of cells that have no blank in them, as hardly a word and hardly a sentence has, where they are words."""


def with_sentences(source: Source, data: Data, note: Note) -> Source:
    """A source of words as one of sentences: in each column a list, but for that which says where a sentence begins.

    Args:
        source: rows of lists stay as they are where the recipe names no such column.
        data: the recipe's settings of its rows.
        note: is told how many words and sentences there are.

    Raises:
        DataError: rows of words, and no column of sentences is named; the column that is named isn't there; and by
            row a word that is none, and a sentence that begins before the first or goes on behind others.
    """
    columns, column = data.columns.named(), data.sentence_column
    seen = list(dict.fromkeys(name for row in source.rows for name in row.values))
    if column is None:
        if problem := _unnamed(source, columns, seen):
            raise DataError(source.shown, [problem])
        return source
    if column not in seen:
        raise DataError("columns", [f"{source.shown}: {_absent(column, seen)}"])
    if all(isinstance(row.values.get(columns["tokens"]), list) for row in source.rows):
        raise DataError(source.shown, [f"the rows hold lists of words already; leave {_KEY} out"])
    problems: list[str] = []
    sentences = [_sentence(rows, column, seen) for rows in _grouped(source.rows, column, problems)]
    words = [columns[role] for role in ("tokens", "tags") if columns[role] in seen]
    lacking = [problem for row in source.rows for problem in _word_problems(row, words)]
    if problems or (lacking and data.incomplete != "drop"):
        raise bad_rows(source, problems + lacking, [HINT] if lacking else ())
    note(f"{source.shown}: {len(source.rows)} rows are the words of {len(sentences)} sentences ({_KEY})")
    return replace(source, rows=tuple(sentences))


def _grouped(rows: Sequence[Row], column: str, problems: list[str]) -> Iterator[list[Row]]:
    """The rows of each sentence. Empty cells go on with it; what says so anew in a row has to be told apart."""
    ended: dict[Any, str] = {}
    sentence: list[Row] = []
    name = None
    for row in rows:
        value = row.values.get(column)
        if isinstance(value, str):
            value = value.strip()
        if is_missing(value):
            if not sentence:
                problems.append(f"{row.place}, {column}: is empty, and no sentence has begun; expected its name")
                return
        elif isinstance(value, (list, dict, bool)):
            problems.append(f"{row.place}, {column}: expected a sentence's name or number, found {shown(value)}")
            continue
        elif value != name:
            if value in ended:
                problems.append(
                    f"{row.place}, {column}: {shown(value)} again, whose sentence ended in {ended[value]}; sort the "
                    "rows by sentence, or give each a name of its own"
                )
            if sentence:
                ended[name] = _number(sentence[-1])
                yield sentence
            name, sentence = value, []
        elif is_missing(sentence[-1].values.get(column)):
            # Where empty cells say that a sentence goes on, the same name may say that another one begins.
            problems.append(
                f"{row.place}, {column}: {shown(value)} again, behind rows without one; expected a new one where a "
                "sentence begins, or one in each row"
            )
        sentence.append(row)
    if sentence:
        yield sentence


def _sentence(rows: Sequence[Row], column: str, columns: Collection[str]) -> Row:
    values = {name: [row.values.get(name) for row in rows] for name in columns if name != column}
    first = rows[0]
    place = first.place
    if len(rows) > 1:
        before, _, number = place.rpartition(" row ")
        place = f"{before} rows {number} to {_number(rows[-1]).removeprefix('row ')}"
    return Row({column: first.values[column], **values}, place)


def _number(row: Row) -> str:
    return f"row {row.place.rpartition(' row ')[2]}"


def _word_problems(row: Row, columns: Sequence[str]) -> Iterator[str]:
    """What is missing in a word's row, or shows that the file was read otherwise than it was written."""
    for column in columns:
        value = row.values.get(column)
        if isinstance(value, str):
            if not value.strip():
                yield f"{row.place}, {column}: is empty"
            elif "\n" in value.strip():
                lone = "a double quote that stands for itself is written twice, in quotes"
                yield f"{row.place}, {column}: holds a line break ({shown(value)}), expected a word or its tag; {lone}"
        elif is_missing(value):
            made = "data frames, and a folder's CSV files, make that of words such as NA and null"
            yield f"{row.place}, {column}: is nothing; {made} (name the file itself, or set keep_default_na=False)"
        elif isinstance(value, (list, Mapping, float)):
            yield f"{row.place}, {column}: expected a word or its tag, found {shown(value)}"


def _absent(column: str, seen: Sequence[str]) -> str:
    problem = f"no column {column!r} ({_KEY}); there are {', '.join(sorted(seen))}"
    cut = next((name for name in seen if name.startswith(f"{column} #")), None)
    if cut is None:
        return problem + nearest(column, seen)
    return f'{problem}; YAML takes a # behind a blank for a comment: put "{cut}" in double quotes'


def _unnamed(source: Source, columns: Mapping[str, str], seen: Sequence[str]) -> str | None:
    """What to write where each row looks like a word; None where none does."""
    found = {role: columns[role] if columns[role] in seen else _like(names, seen) for role, names in _ROLES.items()}
    if found["tokens"] is None or found["tags"] is None:
        return None
    cells = [cell for row in source.rows if not is_missing(cell := row.values.get(str(found["tokens"])))]
    words = [cell for cell in cells if isinstance(cell, str) and " " not in cell.strip() and not LIST.fullmatch(cell)]
    if not words or len(words) < _MOST * len(cells):
        return None
    looks = "the rows look like a word each; "
    if (sentence := _like(_SENTENCES, seen)) is None:
        return (
            f"{looks}name the column that says which sentence a word is of with {_KEY}, or keep a word and its tag a "
            "line, a blank line after each sentence, and name the file .conll"
        )
    own = all(columns[role] == name for role, name in found.items())
    named = ", ".join(f"{role}: {_in_yaml(str(name))}" for role, name in found.items())
    return f"{looks}set {_KEY} to {_in_yaml(sentence)}" + ("" if own else f" and data.columns to {{{named}}}")


def _like(names: Sequence[str], seen: Sequence[str]) -> str | None:
    """The column that has the first of these names."""
    plain = {re.sub(r"[\W_]", "", column).lower(): column for column in reversed(seen)}
    return next((plain[name] for name in names if name in plain), None)


def _in_yaml(name: str) -> str:
    return name if re.fullmatch(r"[^\W\d][\w.-]*", name) else json.dumps(name, ensure_ascii=False)
