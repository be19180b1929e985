"""`benchmarks/quality.py`: which task and columns a folder has, and a table of all contenders on a tiny base."""

import importlib
import sys
from pathlib import Path

import pytest

from samples import ROWS, tone_rows, write_jsonl

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def quality(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module("quality")


@pytest.fixture
def folder(tmp_path):
    """``folder(row, ...)``: a data set's folder with these training rows, and the first of them held out."""

    def write(*rows):
        write_jsonl(tmp_path / "train.jsonl", rows)
        write_jsonl(tmp_path / "test.jsonl", rows[:1])
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("row", "task", "columns"),
    [
        ({"sentence": "a", "label": 1, "idx": 0}, "text-classification", "text=sentence label=label"),
        (
            {"question1": "a", "question2": "b", "is_duplicate": 1},
            "text-classification",
            "text=question1 text_pair=question2 label=is_duplicate",
        ),
        ({"text": "a", "labels": [1, 2]}, "text-classification", "text=text label=labels"),
        ({"tokens": ["a"], "ner_tags": [0]}, "token-classification", "tokens=tokens tags=ner_tags"),
        ({"article": "a", "highlights": "b"}, "summarization", "text=article summary=highlights"),
        ({"translation": {"en": "a", "de": "b"}}, "translation", "source=translation.en target=translation.de"),
        (
            {"instruction": "a", "input": "", "output": "b"},
            "text-generation",
            "prompt=instruction input=input completion=output",
        ),
        ({"question": "a", "answer": "b"}, "text-generation", "prompt=question completion=answer"),
        ({"question": "a", "context": "b", "answers": {}}, "question-answering", "question=question context=context"),
        ({"prompt": "a", "chosen": [], "rejected": [], "messages": []}, "text-generation", "prompt=prompt chosen="),
        ({"text": "a"}, "text-generation", "text=text"),
    ],
)
def test_columns_say_the_task(row, task, columns, quality, folder):
    found = quality.DataSet.of(folder(row))
    assert found.task == task
    assert " ".join(f"{role}={name}" for role, name in found.columns.items()).startswith(columns)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["b", "a", None], ["a", "b"]),
        ([10, 2, 1], ["1", "2", "10"]),
        ([[3, 1], [], [2]], ["1", "2", "3"]),
        ([[0, 1], [1, 1]], None),
        ([0.5, 1.0], None),
        ([True, False], None),
    ],
)
def test_labels_are_those_of_all_rows(labels, expected, quality, folder):
    rows = [{"text": "a", "label": label} for label in labels]
    assert quality.DataSet.of(folder(*rows)).labels == expected


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_all_contenders_are_measured_on_the_same_rows(task, quality, bases, tmp_path, monkeypatch, capsys):
    rows = ROWS[task](24)
    if task == "text-classification":
        rows.append({**tone_rows(1)[0], "text": ""})
    write_jsonl(tmp_path / "train.jsonl", rows)
    write_jsonl(tmp_path / "test.jsonl", ROWS[task](8, seed=9))
    words = ["--base", bases("bert"), "--generator", bases("llama"), "--methods", "full,lora,qlora", "--seeds", "1"]
    monkeypatch.setattr(sys, "argv", ["quality.py", str(tmp_path), *words, "--epochs", "1", "--length", "64"])
    quality.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[2] for line in lines if line.startswith("  seed 0")] == ["full", "lora", "qlora"]
    assert any("against lora" in line for line in lines)
