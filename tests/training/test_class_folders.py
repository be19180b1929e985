"""A folder of texts for each label."""

from __future__ import annotations

import pytest

from lorary.hub.errors import DataError, RecipeError
from lorary.training import evaluate, train
from lorary.training.data import load_data
from runs import SHORT
from samples import tone_rows


@pytest.fixture
def folders(tmp_path):
    """``folders(name, rows, encoding)``: the path of a folder with the rows' texts in folders of their labels."""

    def write(name, rows, encoding="utf-8"):
        for number, row in enumerate(rows):
            place = tmp_path / name / row["label"] / f"{number}_7.txt"
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(row["text"].encode(encoding))
        return str(tmp_path / name)

    return write


def test_texts_have_the_label_that_their_folder_is_called_by(folders, make_recipe, tmp_path):
    rows = [{"text": f"Café {n}\n\nnice", "label": "pos" if n % 2 else "neg"} for n in range(6)]
    files = {"data.train": folders("a/train", rows, "latin-1"), "data.test": folders("a/test", rows[:2], "latin-1")}
    (tmp_path / "a/train/urls.txt").write_text("http://")
    notes: list[str] = []
    data = load_data(make_recipe(**files, **{"data.encoding": "latin-1"}), notes.append)
    assert {(row.values["text"], row.values["label"]) for row in data.train} == {
        (row["text"], row["label"]) for row in rows
    }
    assert (data.labels, len(data.test)) == (("neg", "pos"), 2)
    assert data.train[0].place == f"{tmp_path}/a/train/neg/0_7.txt"
    assert data.provenance["train"]["rows"] == 6
    assert notes[:2] == [
        "the labels are the names of folders: neg, pos",
        f"1 text files of {tmp_path}/a/train are in none of these folders, and aren't read",
    ]
    with pytest.raises(DataError, match=r"its folders \(test, train\) are no labels but splits; name .*/a/train"):
        load_data(make_recipe(**{"data.train": str(tmp_path / "a"), "data.test": None, "data.encoding": "latin-1"}))


def test_a_folder_of_labels_may_be_left_out(folders, make_recipe):
    rows = [{"text": f"text {n}", "label": ("neg", "pos", "unsup")[n % 3]} for n in range(9)]
    files = {"data.train": folders("train", rows), "data.test": None}
    columns = {"text": "body", "label": "tone"}
    data = load_data(make_recipe(**files, **{"data.unlabelled": ("unsup",), "data.columns": columns}))
    assert (data.labels, len(data.train) + len(data.test)) == (("neg", "pos"), 6)


def test_texts_in_no_folder_are_told(make_recipe, tmp_path):
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.txt").write_text("text")
    settings = {"data.train": str(tmp_path / "flat"), "data.test": None}
    with pytest.raises(DataError, match="no folder for each label with its texts"):
        load_data(make_recipe(**settings))
    with pytest.raises(RecipeError, match="its rows need columns"):
        make_recipe("question-answering", **settings)


def test_an_adapter_is_trained_and_measured_on_them(folders, make_recipe, registry):
    held = folders("test", tone_rows(20, seed=9))
    settings = {"data.train": folders("train", tone_rows(40)), "data.test": held}
    version = train(make_recipe(**SHORT, **settings), registry)
    found = evaluate(["tiny"], held, registry, settings={"device": "cpu"})
    assert found.adapters[0].metrics == pytest.approx(version.metrics["test"], abs=1e-4)
