"""JSON files that hold columns rather than rows, as data frames and datasets write them."""

from __future__ import annotations

import gzip
import json

import pytest

from lorary.hub.errors import DataError
from lorary.training.data.files.contents import Manner
from lorary.training.data.files.source import read_source

ROWS = [{"text": "one", "label": 1}, {"text": "null", "label": 0}, {"text": "", "label": None}]
CHATS = [{"messages": [{"role": "user", "content": "hi"}]}, {"messages": [{"role": "user", "content": "ho"}]}]
WORDS = [{"tokens": ["a", "b"], "tags": ["O", "O"]}, {"tokens": ["c"], "tags": ["B-X"]}]
ANSWERS = [{"question": "who?", "answers": {"text": ["x"]}}, {"question": "?", "answers": {"text": []}}]


@pytest.fixture
def read(tmp_path):
    """``read(value, name="rows.json", **manner)``: the rows of such a file by their number, or its problems."""

    def read(value, name="rows.json", **manner):
        content = (value if isinstance(value, str) else json.dumps(value)).encode()
        (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        try:
            source = read_source(str(tmp_path / name), Manner(**manner))
        except DataError as error:
            return list(error.problems)
        assert [row.place.rpartition(", ")[2] for row in source.rows] == [
            f"row {number}" for number in range(1, len(source.rows) + 1)
        ]
        return [*source.unread] or [dict(row.values) for row in source.rows]

    return read


@pytest.mark.parametrize("rows", [ROWS, CHATS, WORDS, ANSWERS, ROWS[:1]])
@pytest.mark.parametrize("orient", ["columns", "split", "index", "table", "records", "list", "values of splits"])
def test_what_pandas_and_datasets_write_is_read_as_rows(rows, orient, read):
    import pandas

    frame = pandas.DataFrame(rows, dtype=object, index=[place + 7 for place in range(len(rows))])
    if orient in ("list", "values of splits"):
        columns = {column: [row[column] for row in rows] for column in rows[0]}
        value = columns if orient == "list" else {"train": columns, "test": {"text": []}}
    else:
        value = frame.to_json(orient=orient)
    found = read(value, "rows.json.gz" if orient == "list" else "rows.json")
    assert [{column: row[column] for column in rows[0]} for row in found] == rows


def test_a_frame_that_is_called_jsonl_is_a_frame(read):
    import pandas

    for orient in ("columns", "split", "index"):
        assert read(pandas.DataFrame(ROWS, dtype=object).to_json(orient=orient), "rows.jsonl") == ROWS
    lines = '{"scores": {"0": 1}}\n{"scores": {"0": 2}}\n'
    assert [row["scores"] for row in read(lines, "rows.jsonl")] == [{"0": 1}, {"0": 2}]
    assert read({"tokens": ["a", "b"], "tags": ["O", "O"]}, "rows.jsonl") == [
        {"tokens": ["a", "b"], "tags": ["O", "O"]}
    ]


def test_rows_under_the_names_of_splits_stay_rows(read):
    assert read({"train": ROWS, "test": ROWS[:1]}) == ROWS
    assert read({"train": ROWS, "test": ROWS}, split="test") == ROWS
    assert read({"train": ROWS, "names": ["a", "b", "c"]}) == ROWS
    assert read({"names": ["a", "b"], "data": ROWS}) == ROWS
    assert read({"columns": ["text", "label"], "data": ROWS}) == ROWS
    assert read({split: {str(place): row for place, row in enumerate(ROWS)} for split in ("train", "test")}) == ROWS
    pairs = [["one", 1], ["two", 0]]
    assert read({"oos_train": pairs, "train": pairs}, header=("text", "label"))[0] == ROWS[0]
    (problem,) = read({"oos_train": pairs, "train": pairs})
    assert problem.endswith("the rows under 'train' are lists, whose columns are named with data.header")
    (problem,) = read({"val": pairs, "test": pairs})
    assert problem.endswith("no rows under 'train'; name their key with data.train_split, or save the rows as one list")


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ({"text": ["a", "b"], "label": [0]}, "its columns have values of different number: text 2, label 1"),
        (
            {"text": {"0": "a", "1": "b"}, "label": {"0": 1}},
            "the column 'label' has no value for '1', which 'text' has",
        ),
        (
            {"columns": ["text", "label"], "data": [["a", 0], ["b"]]},
            "row 2: expected a value for each of 2 columns, found a list of 1",
        ),
        ({"columns": ["a", "a"], "data": [["a", 0]]}, "there are two columns 'a'"),
        ('{"text": {"0": "a", "0": "b"}, "label": {"0": 1}}', "the key '0' stands twice; keep one of them"),
        ('{"text": ["a", {"b": 0, "b": 1}], "label": [0, 1]}', "row 2: the key 'b' stands twice"),
        (
            {"a1": {"text": "a"}, "a2": {"text": "b"}},
            "save the rows as one list (a data frame's with to_json(orient='records'))",
        ),
        ({"text": "a", "label": 1}, "expected a list of rows, found dict with the keys ['text', 'label']"),
    ],
)
def test_what_is_wrong_with_columns_is_told(value, problem, read):
    (found,) = read(value)
    assert problem in found
