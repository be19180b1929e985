"""Rows that lack a value or a label: an error by default, left out and counted where the recipe says so."""

from __future__ import annotations

import json
import math

import pytest

from lorary.hub.errors import DataError, RecipeError
from lorary.training.data import load_data

CLASSIFY, GENERATE = "text-classification", "text-generation"
DROP = {"data.incomplete": "drop"}
USER = {"role": "user", "content": "a?"}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


@pytest.fixture
def load(make_recipe, tmp_path):
    """``load(rows, task, **settings)``: the roles of the rows that are left, and the notes."""

    def load(rows, task=CLASSIFY, name="rows.jsonl", **settings):
        path = tmp_path / name
        path.write_text(rows if isinstance(rows, str) else "".join(f"{json.dumps(row)}\n" for row in rows))
        recipe = make_recipe(task, **{"data.train": str(path), "data.test": None, **settings})
        notes: list[str] = []
        data = load_data(recipe, notes.append)
        found = sorted(data.train + data.validation + data.test, key=lambda row: int(row.place.rpartition(" ")[2]))
        return [dict(row.values) for row in found], notes, data

    return load


def rows(*bad):
    good = [{"text": f"text {n}", "label": "ab"[n % 2]} for n in range(6)]
    return [*good[:3], *bad, *good[3:]]


LACKING = (
    {"text": " ", "label": "a"}, {"text": None, "label": "a"}, {"label": "a"}, {"text": "x", "label": None},
    {"text": "x", "label": math.nan}, {"text": "x", "label": ""},
)  # fmt: skip


def test_rows_that_lack_a_value_are_left_out_where_asked_for(load, tmp_path):
    found, notes, data = load(rows(*LACKING), **DROP)
    assert [row["text"] for row in found] == [f"text {n}" for n in range(6)]
    place = f"{tmp_path}/rows.jsonl, row 4"
    assert notes[0] == f"6 of 12 rows are left out, since they lack a value (data.incomplete); first: {place}"
    assert (data.provenance["train"]["rows"], data.provenance["train"]["left_out"]) == (6, 6)


def test_by_default_they_are_mistakes_with_a_hint(load):
    with pytest.raises(DataError) as caught:
        load(rows(*LACKING))
    assert len(caught.value.problems) == 6
    assert str(caught.value).endswith(
        "\ndata.incomplete: drop leaves out the rows in which a value is missing or empty, or an answer isn't in its "
        "place"
    )
    with pytest.raises(DataError) as caught:
        load(rows({"text": 5, "label": "a"}))
    assert not caught.value.hints


def test_other_mistakes_stay_mistakes(load):
    with pytest.raises(DataError) as caught:
        load(rows(*LACKING, {"text": 5, "label": "a"}), **DROP)
    assert [problem.rpartition(", ")[2] for problem in caught.value.problems] == ["found 5"]


def test_no_row_left_is_an_error(load):
    with pytest.raises(DataError, match="no row is left"):
        load(LACKING, **DROP)


def test_empty_cells_of_a_csv_file_are_left_out(load):
    found, _, data = load("text,label\na,1.0\n,0.0\nb,\nc,0.0\nd,1.0\n", name="rows.csv", **DROP)
    assert [row["text"] for row in found] == ["a", "c", "d"]
    assert data.problem_type == "regression"


def test_a_chat_in_which_the_assistant_says_nothing_is_left_out(load):
    chats = [
        [USER, answer("b")], [USER, answer("")], [], [USER, answer(None)],
        [USER, answer(None, tool_calls=[{"type": "function", "function": {"name": "f", "arguments": {}}}])],
        [{"from": "human", "value": "a?"}, {"from": "gpt", "value": " "}], [USER, answer("c")],
    ]  # fmt: skip
    settings = {"data.columns": {"messages": "messages"}, **DROP}
    found, notes, _ = load([{"messages": chat} for chat in chats], GENERATE, **settings)
    assert [row["messages"][-1]["content"] for row in found] == ["b", "", "c"]
    assert notes[0].startswith("4 of 7 rows are left out")


def test_an_empty_input_and_no_answer_say_something(load):
    columns = {"data.columns": {"prompt": "prompt", "input": "input", "completion": "completion"}}
    some = [{"prompt": "a", "input": "", "completion": c} for c in ("b", "", "c")]
    found, _, _ = load(some, GENERATE, **columns, **DROP)
    assert [row["completion"] for row in found] == ["b", "c"]
    some = [{"question": q, "context": f"d {q}", "answers": {"text": [], "answer_start": []}} for q in "abc"]
    assert len(load(some, "question-answering", **DROP)[0]) == 3


def test_an_answer_out_of_its_place_and_blank_words_are_left_out(load):
    some = [
        {
            "question": f"q{start}?",
            "context": f"Bob came {start}",
            "answers": {"text": ["Bob"], "answer_start": [start]},
        }
        for start in (0, 1, 0, 0)
    ]
    found, _, _ = load(some, "question-answering", **DROP)
    assert [row["question"] for row in found] == ["q0?"] * 3
    with pytest.raises(DataError) as caught:
        load(some, "question-answering")
    assert caught.value.hints
    some = [{"tokens": ["Bob", word], "tags": ["B-PER", "O"]} for word in ("came", " ", "went", "sat")]
    assert [row["tokens"][1] for row in load(some, "token-classification", **DROP)[0]] == ["came", "went", "sat"]


def test_an_empty_list_of_labels_is_no_missing_label(load):
    some = [{"text": f"t {n}", "label": label} for n, label in enumerate([["x"], [], ["x", "y"], None, ["y"]])]
    found, _, _ = load(some, **DROP)
    assert [row["label"] for row in found] == [["x"], [], ["x", "y"], ["y"]]


@pytest.mark.parametrize("label", [-1, "-1", -1.0, " - "])
def test_rows_whose_label_says_there_is_none_are_left_out(label, load):
    found, notes, data = load(rows({"text": "x", "label": label}), **{"data.unlabelled": (-1, "-")})
    assert data.labels == ("a", "b")
    assert len(found) == 6
    assert notes[0].startswith("1 of 7 rows are left out, since they have a label that says there is none (data.unl")


def test_columns_of_yes_and_no_may_say_so_too(load):
    some = [{"text": f"t {n}", "p": n % 2, "q": 1 - n % 2} for n in range(6)] + [{"text": "x", "p": -1, "q": -1}]
    settings = {"data.label_columns": ("p", "q"), "data.columns": {"text": "text"}}
    assert len(load(some, **settings, **{"data.unlabelled": (-1,)})[0]) == 6
    some[-1] = {"text": "x", "p": None, "q": 1}
    assert len(load(some, **settings, **DROP)[0]) == 6


def test_a_rare_label_that_may_say_so_is_told(load):
    some = [{"text": f"t {n}", "label": n % 3 if n else -1} for n in range(30)]
    _, notes, _ = load(some)
    assert notes[0] == (
        "1 of 30 training rows have the label '-1', which is learned like others; if '-1' says that a row has no "
        "label, set data.unlabelled to ['-1'], which leaves such rows out"
    )
    some = [{"text": f"t {n}", "label": n % 3 - 1} for n in range(30)]  # negative, neutral, positive
    assert not any("unlabelled" in line for line in load(some)[1])


def test_held_out_rows_without_labels_are_told(load, tmp_path):
    (tmp_path / "held.jsonl").write_text('{"text": "x", "label": -1}\n' * 3)
    settings = {"data.test": str(tmp_path / "held.jsonl")}
    with pytest.raises(DataError) as caught:
        load([{"text": f"t {n}", "label": n % 2} for n in range(6)], **settings)
    assert caught.value.hints == (
        "if '-1' says that a row has no label, set data.unlabelled to ['-1'], which leaves such rows out",
    )
    assert "did you mean" not in str(caught.value)
    with pytest.raises(DataError, match=r"held\.jsonl: 1 problem\n.*no row is left: all lack a label or a value"):
        load([{"text": f"t {n}", "label": n % 2} for n in range(6)], **settings, **{"data.unlabelled": (-1,)})


def test_only_classifiers_have_rows_without_labels(make_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"data\.unlabelled: only text-classification has one"):
        make_recipe("token-classification", **{"data.unlabelled": ("-",)})
