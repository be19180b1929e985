"""Queries with lists of what they find and what they don't, and sets of like texts."""

from __future__ import annotations

import json

import numpy
import pytest

from lorary.hub.errors import DataError
from lorary.training.data import Example, load_data, split_rows
from lorary.training.data.splits import whole_groups
from lorary.training.experiments.folds import all_rows, fold_data
from samples import write_jsonl

EMBED = "feature-extraction"
BGE = {"text": "query", "positive": "pos", "negative": "neg"}
ROWS = [
    {"query": "q1", "pos": ["a", "b", "c"], "neg": ["x", "y"], "pos_scores": [1, 2, 3]},
    {"query": "q2", "pos": ["d"], "neg": ["z", "v", "w"], "pos_scores": [1]},
    {"query": "q3", "pos": "e", "neg": ["u"], "pos_scores": [1]},
]


@pytest.fixture
def load(make_recipe, tmp_path):
    """``load(rows, columns)``: all pairs or triples of such a file in its order, and the notes."""

    def load(rows, columns, **settings):
        data = {"data.train": write_jsonl(tmp_path / "a.jsonl", rows), "data.test": None, "data.columns": dict(columns)}
        notes: list[str] = []
        found = load_data(make_recipe(EMBED, **data, **settings), notes.append)
        return sorted(found.train + found.test, key=lambda row: row.place), notes

    return load


def values(rows):
    return [tuple(row.values.values()) for row in rows]


def test_each_positive_is_a_row_with_a_negative_in_turn(load):
    rows, notes = load(ROWS, BGE)
    assert values(rows) == [
        ("q1", "a", "x"), ("q1", "b", "y"), ("q1", "c", "x"), ("q2", "d", "z"), ("q3", "e", "u"),
    ]  # fmt: skip
    assert [row.place.rpartition("/")[2] for row in rows] == [
        "a.jsonl, row 1, positive 1", "a.jsonl, row 1, positive 2", "a.jsonl, row 1, positive 3", "a.jsonl, row 2",
        "a.jsonl, row 3",
    ]  # fmt: skip
    (note,) = (note for note in notes if "positives" in note)
    assert note.endswith(
        "a.jsonl: 3 rows hold 5 positives, each of which is a row of its own; 2 of 6 negatives aren't read, since each "
        "row takes one"
    )


def test_negatives_may_be_left_out(load):
    rows, notes = load(ROWS, {"text": "query", "positive": "pos"})
    assert values(rows)[-2:] == [("q2", "d"), ("q3", "e")]
    assert any(note.endswith("each of which is a row of its own") for note in notes)


def test_a_set_is_its_first_text_beside_each_other(load):
    rows, notes = load([{"set": ["a", "b", "c"]}, {"set": ["d", "e"]}], {"text": "set", "positive": "set"})
    assert values(rows) == [("a", "b"), ("a", "c"), ("d", "e")]
    assert any("2 rows hold 3 positives" in note for note in notes)


@pytest.mark.parametrize(
    ("row", "columns", "problem"),
    [
        ({"query": "q", "pos": [], "neg": ["x"]}, BGE, "row 4, pos: expected a text, found []"),
        ({"query": "q", "pos": ["a"], "neg": []}, BGE, "row 4, neg: expected a text, found []"),
        ({"query": "q", "pos": ["a", " "], "neg": ["x"]}, BGE, "row 4, positive 2, pos: is empty"),
        ({"query": "q", "pos": ["a", 3], "neg": ["x"]}, BGE, "row 4, positive 2, pos: expected a text, found 3"),
        ({"query": ["q"], "pos": ["a"], "neg": ["x"]}, BGE, "row 4, query: expected a text, found ['q']"),
    ],
)
def test_what_is_wrong_in_a_list_is_told_by_its_place(row, columns, problem, load):
    with pytest.raises(DataError) as caught:
        load([*ROWS, row], columns)
    assert [told.rpartition("/")[2] for told in caught.value.problems] == [f"a.jsonl, {problem}"]
    if "found 3" not in problem and "query" not in problem:
        assert len(load([*ROWS, row, *ROWS], columns, **{"data.incomplete": "drop"})[0]) == 10


@pytest.mark.parametrize("write", [repr, json.dumps, lambda texts: str(numpy.array(texts))])
def test_lists_as_text_are_read_as_lists(write, load):
    rows = [{"query": "q1", "pos": write(["a", "it's"]), "neg": write(["x"])}, {"query": "q2", "pos": write(["é"])}]
    rows[1]["neg"] = "none"
    found, notes = load(rows, {"text": "query", "positive": "pos", "negative": "neg"})
    assert values(found) == [("q1", "a", write(["x"])), ("q1", "it's", write(["x"])), ("q2", "é", "none")]
    assert [note for note in notes if "are lists" in note] == ["2 of 2 texts in 'pos' are lists: read as their texts"]
    rows += [{"query": "q", "pos": "[a, b", "neg": "[no"}, {"query": "q", "pos": "[a, b]", "neg": "y"}]
    rows += rows[:1]
    with pytest.raises(DataError, match=r"row 4, pos: expected a list of texts as in other rows, found '\[a, b\]'"):
        load(rows, BGE)
    assert values(load([{"set": write(["a", "b"])}] * 2, {"text": "set", "positive": "set"})[0]) == [("a", "b")] * 2


def test_lists_of_numbers_and_texts_in_brackets_stay_texts(load):
    rows = [{"query": "q", "pos": "[1, 2]"}, {"query": "p", "pos": "['a'] it is"}, {"query": "r", "pos": "['a']"}]
    assert values(load(rows, {"text": "query", "positive": "pos"})[0]) == [tuple(row.values()) for row in rows]


def test_a_set_of_one_text_has_nothing_beside_it_and_a_text_is_no_set(load):
    rows = [{"set": ["a", "b"]}, {"set": ["c"]}, {"set": "d"}]
    with pytest.raises(DataError) as caught:
        load(rows, {"text": "set", "positive": "set"})
    assert [told.rpartition("/")[2] for told in caught.value.problems] == [
        "a.jsonl, row 2, set: expected a list of at least two texts, found ['c']",
        "a.jsonl, row 3, set: expected a list of at least two texts, found 'd'",
    ]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (ROWS[0], "FlagEmbedding's; set data.columns to {text: query, positive: pos, negative: neg}"),
        ({"query": "a", "pos": ["b"]}, "FlagEmbedding's; set data.columns to {text: query, positive: pos}"),
        ({"set": ["a", "b"]}, "sets of like texts; set data.columns to {text: set, positive: set}"),
    ],
)
def test_the_line_to_write_is_told(row, line, load):
    with pytest.raises(DataError) as caught:
        load([row] * 3, {})
    assert caught.value.problems[-1] == f"the rows look like {line}"


def test_rows_of_one_query_stay_together(make_recipe, tmp_path):
    rows = [{"query": f"q{n}", "pos": [f"p{n}{k}" for k in range(1 + n % 4)]} for n in range(40)]
    settings = {"data.columns": {"text": "query", "positive": "pos"}, "training.early_stopping": 1}
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    data = load_data(make_recipe(EMBED, **{"data.train": path, "data.test": None}, **settings))
    parts = [{row.values["text"] for row in part} for part in (data.train, data.validation, data.test)]
    assert all(parts)
    assert sum(map(len, parts)) == 40
    assert 18 <= len(data.test) <= 24
    recipe = make_recipe(EMBED, **{"data.train": path, "data.test": None}, **settings, **{"training.folds": 4})
    found = load_data(recipe)
    for fold in fold_data(recipe, found, all_rows(recipe, found)[0], print):
        assert not {row.values["text"] for row in fold.train} & {row.values["text"] for row in fold.test}


def test_pairs_whose_texts_differ_are_split_as_before():
    pairs = tuple(Example({"text": str(n), "positive": f"p{n}"}, f"row {n}") for n in range(20))
    assert whole_groups(pairs) is None
    train, test = split_rows(pairs, 0.2, 1, print)
    assert (len(train), len(test)) == (16, 4)
