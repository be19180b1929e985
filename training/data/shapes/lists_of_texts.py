"""Pairs and triples that files have as lists: a query's positives and its negatives, or a set of like texts.

FlagEmbedding's rows are ``{query, pos: [...], neg: [...]}``, and sentence-transformers' data have those too, or
``{set: [...]}``. Each positive becomes a row of its own: the loss knows that a text's other positives are no negatives.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from lorary.training.data.examples import Note
from lorary.training.data.files.source import Row, Source, bad_rows
from lorary.training.data.shapes.written import LIST, written_list
from lorary.training.recipe.raw import shown


def pair_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """Columns by role, with a name of its own for the other text where a text and its positive are of one set."""
    of_sets = "positive" in columns and columns.get("text") == columns["positive"]
    return {**columns, "positive": f"{columns['positive']} (other)"} if of_sets else dict(columns)


def with_pairs(source: Source, columns: Mapping[str, str], note: Note) -> Source:
    """A source with a row for each text in lists of positives, beside a negative of the row's own, each in turn.

    Where the text and its positive are one column, its lists are sets: their first text stands beside each other one.
    An empty list is left in its place, for the check of rows to name.

    Raises:
        DataError: a set that is none, by its row.
    """
    text, positive, negative = columns["text"], columns["positive"], columns.get("negative")
    sets = text == positive and any(text in row.values for row in source.rows)
    if sets:
        _check_sets(source, text)
    elif not any(isinstance(row.values.get(name or ""), list) for row in source.rows for name in (positive, negative)):
        return source
    other = pair_columns(columns)["positive"]
    given = [_with_first(row, text, other) for row in source.rows] if sets else source.rows
    rows = tuple(pair for row in given for pair in _pairs(row, other, negative))
    told = f"{source.shown}: {len(source.rows)} rows hold {len(rows)} positives, each of which is a row of its own"
    if negative is not None:
        counts = [(_count(row, negative), _count(row, positive)) for row in source.rows]
        if unread := sum(max(0, negatives - positives) for negatives, positives in counts):
            of = sum(negatives for negatives, _ in counts)
            told += f"; {unread} of {of} negatives aren't read, since each row takes one"
    note(told)
    return replace(source, rows=rows)


def with_written_lists(source: Source, columns: Mapping[str, str], note: Note) -> Source:
    """A source with lists in place of texts, which CSV files have them as, in columns where most texts are that.

    Raises:
        DataError: by its row, a text in such a column that begins and ends like a list and is none.
    """
    read, problems = dict[str, dict[int, list[Any]]](), list[str]()
    for name in dict.fromkeys(columns[role] for role in ("positive", "negative") if role in columns):
        given = [value for row in source.rows if (value := row.values.get(name)) not in (None, "")]
        bracketed = {
            place: text
            for place, row in enumerate(source.rows)
            if isinstance(text := row.values.get(name), str) and LIST.fullmatch(text.strip())
        }
        lists = {place: found for place, text in bracketed.items() if (found := _written_texts(text)) is not None}
        if lists and 2 * (len(lists) + sum(isinstance(value, list) for value in given)) > len(given):
            note(f"{len(lists)} of {len(given)} texts in {name!r} are lists: read as their texts")
            read[name] = lists
            problems += [
                f"{source.rows[place].place}, {name}: expected a list of texts as in other rows, found {shown(text)}"
                for place, text in bracketed.items()
                if place not in lists
            ]
    if problems:
        raise bad_rows(source, problems)
    rows = [
        replace(row, values={**row.values, **{name: lists[place] for name, lists in read.items() if place in lists}})
        for place, row in enumerate(source.rows)
    ]
    return replace(source, rows=tuple(rows)) if read else source


def _written_texts(text: str) -> list[Any] | None:
    found = written_list(text)
    return found if found is not None and all(isinstance(one, str) for one in found) else None


def _check_sets(source: Source, column: str) -> None:
    problems = [
        f"{row.place}, {column}: expected a list of at least two texts, found {shown(row.values.get(column))}"
        for row in source.rows
        if _count(row, column) < 2
    ]
    if problems:
        raise bad_rows(source, problems)


def _with_first(row: Row, column: str, other: str) -> Row:
    first, *others = row.values[column]
    return replace(row, values={**row.values, column: first, other: others})


def _pairs(row: Row, positive: str, negative: str | None) -> Iterator[Row]:
    texts, others = row.values.get(positive), row.values.get(negative or "")
    texts = texts if isinstance(texts, list) and texts else [texts]
    for place, text in enumerate(texts):
        values = {**row.values, positive: text}
        if negative is not None and isinstance(others, list) and others:
            values[negative] = others[place % len(others)]
        yield Row(values, row.place if len(texts) == 1 else f"{row.place}, positive {place + 1}")


def _count(row: Row, column: str) -> int:
    value = row.values.get(column)
    return len(value) if isinstance(value, list) else int(column in row.values)
