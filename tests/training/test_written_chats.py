"""Prompts and replies that are chats as text, as CSV files have them, beside texts that only begin like one."""

from __future__ import annotations

import csv
import json

import numpy
import pytest

from lorary.hub.errors import DataError
from lorary.training.data import load_data
from lorary.training.data.shapes import messages

PAIRS = {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}
SAID = ['it\'s "profit"?', "a} {b", "a'}\n {'b", "[1, 2]", "{}"]


def chat(text, role="assistant"):
    return [{"role": "user", "content": text}, {"role": role, "content": f"{text} rose"}]


ROWS = [{"prompt": chat(text)[:1], "chosen": chat(text)[1:], "rejected": chat(text)} for text in SAID]


def as_arrays(messages):
    """As numpy prints what Parquet files' lists are in data frames: without commas."""
    return str(numpy.array(messages, dtype=object))


@pytest.fixture
def load(make_recipe, tmp_path):
    """``load(rows, columns)``: the values of such a CSV file's rows by role, and the notes."""

    def load(rows, columns, **settings):
        with (tmp_path / "rows.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        notes: list[str] = []
        data = {"data.train": str(tmp_path / "rows.csv"), "data.test": None, "data.columns": dict(columns)}
        found = load_data(make_recipe("text-generation", **data, **settings), notes.append)
        rows = sorted(found.train + found.test, key=lambda row: int(row.place.rpartition(" ")[2]))
        return [dict(row.values) for row in rows], notes

    return load


@pytest.mark.parametrize("write", [json.dumps, repr, as_arrays], ids=["json", "list", "arrays"])
def test_pairs_that_are_chats_as_text_are_read_as_their_messages(write, load):
    rows, notes = load([{role: write(messages) for role, messages in row.items()} for row in ROWS], PAIRS)
    assert rows == ROWS
    assert any(note.startswith("5 of 5 texts in 'chosen' are chats: read as their messages") for note in notes)


@pytest.mark.parametrize("write", [json.dumps, repr], ids=["json", "dict"])
def test_a_single_message_and_other_names_of_speakers_are_chats_too(write, load):
    pairs = [
        {
            "prompt": "profit?",
            "chosen": write({"from": "gpt", "value": f"up {n}"}),
            "rejected": write({"from": "gpt", "value": "no"}),
        }
        for n in range(4)
    ]
    rows, _ = load(pairs, PAIRS)
    assert rows[0]["chosen"] == [{"role": "assistant", "content": "up 0"}]


def test_completions_are_chats_where_their_prompts_are(load):
    both = {"prompt": "prompt", "completion": "completion"}
    prompt, reply = json.dumps(chat("x")[:1]), json.dumps(chat("x")[1:])
    rows, _ = load([{"prompt": prompt, "completion": reply}] * 4, both)
    assert rows[0] == {"prompt": chat("x")[:1], "completion": chat("x")[1:]}
    for texts in {"prompt": prompt, "completion": "happy"}, {"prompt": "write a chat", "completion": reply}:
        rows, notes = load([texts] * 4, both)
        assert rows[0] == texts
        assert any("and are read as texts like those in" in note for note in notes)


@pytest.mark.parametrize(
    "text",
    ["[1] is the first source", "[a, b]", '["role", "content"]', '[{"role": "admin", "id": 3}]', "{role: user}", "[]"],
)
def test_texts_that_begin_like_a_list_stay_texts(text, load):
    rows, notes = load([{"prompt": text, "chosen": text, "rejected": "b"}] * 4, PAIRS)
    assert rows[0] == {"prompt": text, "chosen": text, "rejected": "b"}
    assert not any("are chats" in note for note in notes)


def test_texts_that_have_no_speaker_in_them_are_not_taken_apart(load, monkeypatch):
    monkeypatch.setattr(messages, "from_text", None)
    text = "[1] in the role of {a: b}, from 3 to 5]"
    assert load([{"prompt": "p", "completion": text}] * 4, {"prompt": "prompt", "completion": "completion"})[0]


def test_a_few_chats_among_texts_stay_texts_and_are_told(load):
    texts = [*("plain",) * 4, json.dumps(chat("a")[1:])]
    rows, notes = load([{"prompt": "p", "chosen": text, "rejected": "b"} for text in texts], PAIRS)
    assert [row["chosen"] for row in rows] == texts
    assert any(note.startswith("1 of 5 texts in 'chosen' look like chats (first: ") for note in notes)


def test_a_text_among_chats_that_is_none_is_told_by_its_row(load):
    chats = [*(json.dumps(chat("a")[1:]) for _ in range(4)), "[{'role': 'assistant', 'content': 'cut"]
    with pytest.raises(DataError) as caught:
        load([{"prompt": "p", "chosen": text, "rejected": json.dumps(chat("b")[1:])} for text in chats], PAIRS)
    assert [problem.rpartition("/")[2] for problem in caught.value.problems] == [
        f"rows.csv, row 6, chosen: expected messages as in other rows, found {chats[-1]!r}"
    ]
