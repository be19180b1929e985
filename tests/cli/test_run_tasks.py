"""`lorary run` for question answering and fill-mask."""

import json

import pytest
import torch
from transformers import AutoModelForMaskedLM

from lorary.adapters import Backbone
from lorary.hub.cli.main import main
from lorary.hub.manifest import Manifest, Preprocessing
from tiny import make_adapter, make_config, make_tokenizer

CONTEXT = "shares rose and profit fell the bank offer cash"
TASKS = ("question-answering", "fill-mask", "text-classification")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a base and an adapter of each of TASKS on it."""
    place = tmp_path_factory.mktemp("tasks")
    torch.manual_seed(0)
    AutoModelForMaskedLM.from_config(make_config("bert")).save_pretrained(place / "base")
    make_tokenizer("bert").save_pretrained(place / "base")
    for task in TASKS:
        # The base's files lack BERT's pooler, which only the classifier has.
        saved = {"modules_to_save": ["pooler", "classifier"]} if task == "text-classification" else {}
        make_adapter(place / "base", place / task, task=task, **saved)
        Manifest(task, Backbone.from_pretrained(str(place / "base")).identity).write(place / task)
    return place


@pytest.fixture
def run(capsys):
    def run(*words, code=0):
        assert main(["run", *map(str, words)]) == code
        captured = capsys.readouterr()
        return captured.out if code == 0 else captured.err

    return run


def test_question_answering(run, place, tmp_path):
    questions = ["profit of the bank", "cash"]
    backbone = Backbone.from_pretrained(str(place / "base"))
    backbone.load(place / "question-answering", "qa")
    want = backbone.predict([{"question": one, "context": CONTEXT} for one in questions], "qa")
    heading, *lines = run(place / "question-answering", *questions, "--context", CONTEXT).splitlines()
    assert heading.split() == ["answer", "score", "question"]
    assert [line.split() for line in lines] == [
        [*answer["answer"].split(), f"{answer['score']:.3f}", *question.split()]
        for answer, question in zip(want, questions, strict=True)
    ]
    (tmp_path / "lease.txt").write_text(CONTEXT, encoding="utf-8")
    found = json.loads(
        run(place / "question-answering", *questions, "--context-file", tmp_path / "lease.txt", "--json")
    )
    assert found["context"] == CONTEXT
    assert [row["input"] for row in found["rows"]] == questions
    for row, answer in zip(found["rows"], want, strict=True):
        assert row["output"] == pytest.approx(answer, abs=1e-5)


def test_fill_mask(run, place):
    text = "profit [MASK] the bank"
    first, *lines = run(place / "fill-mask", text).splitlines()
    assert first == text
    fillings = json.loads(run(place / "fill-mask", text, "--json"))["rows"][0]["output"]
    assert [line.split() for line in lines] == [
        [one["token_str"], f"{one['score']:.3f}", *one["sequence"].split()] for one in fillings
    ]
    lines = run(place / "fill-mask", "profit [MASK] the [MASK]").splitlines()[1:]
    assert [line.split()[:2] for line in lines] == [["mask", "1"]] * 5 + [["mask", "2"]] * 5


def test_embeddings_learned_from_scored_pairs_are_of_single_texts(run, place, tmp_path):
    folder = make_adapter(place / "base", tmp_path / "scored", task="feature-extraction")
    identity = Backbone.from_pretrained(str(place / "base")).identity
    columns = {name: name for name in ("text", "text_pair", "score")}
    Manifest("feature-extraction", identity, preprocessing=Preprocessing(columns)).write(folder)
    (row,) = json.loads(run(folder, "profit rose", "--json"))["rows"]
    assert row["input"] == "profit rose"
    assert "takes single texts" in run(folder, "profit rose", "--pair", "cash", "--json", code=2)


def test_a_context_where_it_belongs(run, place, tmp_path):
    asking = (place / "question-answering", "cash")
    for words in ((), ("--context", CONTEXT, "--context-file", "x")):
        assert "pass --context or --context-file, one of them" in run(*asking, *words, code=2)
    assert "expected a readable UTF-8 text" in run(*asking, "--context-file", tmp_path / "none", code=2)
    other = run(place / "text-classification", "cash", "--context", CONTEXT, code=2)
    assert "are for question answering; this adapter is for text-classification" in other
    assert "a row's context is empty" in run(*asking, "--context", " ", code=2)
    assert "has no [MASK]" in run(place / "fill-mask", "cash", code=2)
