"""What is said of rows whose columns another form of the task has."""

import pytest

from lorary.hub.errors import DataError
from lorary.training.data import load_data, load_rows
from samples import write_jsonl


@pytest.fixture
def notes_of(make_recipe, tmp_path):
    """A function that gives the notes on reading rows for a task."""

    def read(task, rows, **settings):
        rows = [{name: f"{value} {place}" for name, value in row.items()} for place, row in enumerate(rows * 6)]
        for place, row in enumerate(rows):
            if "label" in row:
                row["label"] = "ab"[place % 2]
        notes: list[str] = []
        path = write_jsonl(tmp_path / "rows.jsonl", rows)
        load_data(make_recipe(**{"task": task, "data.train": path, "data.test": None} | settings), notes.append)
        return notes

    return read


@pytest.mark.parametrize(("task", "row", "told"), [
    ("text-classification", {"text": "a", "text_pair": "b", "label": "x"},
     "rows.jsonl, row 1), which isn't read; to read it, set data.columns to {text: text, label: label, "
     "text_pair: text_pair}"),
    ("feature-extraction", {"text": "a", "positive": "b", "negative": "c"},
     "which isn't read; to read it, set data.columns to {text: text, positive: positive, negative: negative}"),
], ids=lambda value: str(value)[:20])  # fmt: skip
def test_a_column_of_a_larger_form_that_is_not_read_is_told(notes_of, task, row, told):
    assert any(told in line for line in notes_of(task, [row] * 2))
    read = {f"data.columns.{role}": role for role in row}
    assert not any("isn't read" in line for line in notes_of(task, [row] * 2, **read))
    other = {name if name not in ("text_pair", "negative") else "beside": value for name, value in row.items()}
    assert not any("isn't read" in line for line in notes_of(task, [other] * 2))


@pytest.mark.parametrize(("row", "told"), [
    ({"text": "a", "text_pair": "b", "score": 1}, "scored pairs; set data.columns to {text: text, text_pair: text_p"),
    ({"sentence1": "a", "sentence2": "b", "score": 1}, "{text: sentence1, text_pair: sentence2, score: score}"),
    ({"anchor": "a", "positive": "b", "negative": "c"}, "{text: anchor, positive: positive, negative: negative}"),
    ({"query": "a", "positive": "b"}, "look like pairs; set data.columns to {text: query, positive: positive}"),
], ids=str)  # fmt: skip
def test_known_pairs_are_recognised_where_columns_are_missing(make_recipe, tmp_path, row, told):
    files = {"data.train": write_jsonl(tmp_path / "rows.jsonl", [row] * 4), "data.test": None}
    with pytest.raises(DataError) as caught:
        load_data(make_recipe(task="feature-extraction", **files))
    assert told in caught.value.problems[-1]


def test_rows_that_are_only_measured_on_are_told_of_no_settings(make_recipe, tmp_path):
    rows = [{"text": f"a {place}", "text_pair": "b", "label": "ab"[place % 2]} for place in range(8)]
    notes: list[str] = []
    load_rows(make_recipe(**{"data.train": write_jsonl(tmp_path / "rows.jsonl", rows)}), notes.append)
    assert notes == []
