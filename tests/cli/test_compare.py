"""`lorary compare` on tiny models: each adapter's answers are those that it gives alone."""

import io
import json
import sys

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub.cli.answers import show_compared
from lorary.hub.cli.main import main
from lorary.hub.manifest import Generation, Manifest, Prompt
from tiny import make_adapter, make_base

TEXTS = ["profit rose the bank", "asthma and cancer"]
CASES = {
    "tone": ("bert", "text-classification", {"labels": ("down", "flat", "up")}),
    "entities": ("bert", "token-classification", {"labels": ("O", "B-Disease", "I-Disease")}),
    "answers": ("bert", "question-answering", {}),
    "story": ("llama", "text-generation", {"prompt": Prompt("instruction", "the {prompt}")}),
    "short": ("llama", "text-generation", {"generation": Generation(max_new_tokens=2)}),
    "vectors": ("bert", "feature-extraction", {}),
    "summary": ("t5", "summarization", {}),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two adapters of each of CASES, ``tone-1`` and ``tone-2``, and a folder for each family of bases."""
    torch.set_num_threads(1)
    place, folders = tmp_path_factory.mktemp("compare"), {}
    for name, (family, task, fields) in CASES.items():
        if family not in folders:
            folders[family] = make_base(family, place / family)
        identity = Backbone.from_pretrained(str(folders[family])).identity
        for number in (1, 2):
            folder = place / f"{name}-{number}"
            task_shape = "seq2seq" if family == "t5" else task
            labels = {"labels": 3} if "labels" in fields else {}
            make_adapter(folders[family], folder, task=task_shape, seed=number, **labels)
            Manifest(task=task, base=identity, **fields).write(folder)
            folders[f"{name}-{number}"] = folder
    return folders


@pytest.fixture
def compare(capsys, monkeypatch):
    """Run `lorary compare`; expects the exit code and gives back its stdout, or stderr when it failed."""

    def run(*words, code=0, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        capsys.readouterr()
        found = main(["compare", *map(str, words)])
        captured = capsys.readouterr()
        assert found == code, captured
        assert "Traceback" not in captured.err
        return captured.out if code == 0 else captured.err

    return run


@pytest.mark.parametrize("name", ["tone", "entities", "story", "summary"])
def test_each_answers_as_it_does_alone(folders, compare, capsys, name):
    pair = [folders[f"{name}-1"], folders[f"{name}-2"]]
    found = json.loads(compare(*pair, "--json", stdin="\n".join(TEXTS)))
    assert [row["input"] for row in found["rows"]] == TEXTS
    for folder in pair:
        assert main(["run", str(folder), *TEXTS, "--json"]) == 0
        alone = json.loads(capsys.readouterr().out)
        outputs = [row["outputs"][str(folder)] for row in found["rows"]]
        assert outputs == [row["output"] for row in alone["rows"]]
    assert found["task"] == CASES[name][1]


def test_what_is_shown(folders, compare):
    first, second = folders["tone-1"], folders["tone-2"]
    text = compare(first, second, "--text", TEXTS[0])
    lines = text.splitlines()
    assert lines[0] == f"> {TEXTS[0]}"
    for line, folder in zip(lines[1:3], (first, second), strict=True):
        path, label, score = line.split()
        assert path == str(folder)
        assert label in ("down", "flat", "up")
        assert 0 <= float(score.strip("()")) <= 1
    labels = {line.split()[1] for line in lines[1:3]}
    assert lines[-1] == f"The same answer to {int(len(labels) == 1)} of 1 text."


def test_a_foreign_adapter_is_for_what_the_catalogue_has_it_for(folders, compare, registry, tmp_path):
    folder = make_adapter(folders["t5"], tmp_path / "brief", task="seq2seq", seed=3)
    registry.add(folder, name="brief", domain="finance", task="summarization")
    words = ("--base", folders["t5"], "--text", TEXTS[0], "--json", "--registry", registry.path)
    found = json.loads(compare("brief", folders["summary-1"], *words))
    assert found["task"] == "summarization"
    told = compare(folder, folders["summary-1"], *words, code=2)  # a folder is in no catalogue
    assert f"{folder} is for text-generation" in told


def test_each_writes_as_much_as_it_says(folders, compare):
    found = json.loads(compare(folders["story-1"], folders["short-1"], "--text", "story", "--json"))
    (row,) = found["rows"]
    words = [len(text.split()) for text in row["outputs"].values()]
    assert words[1] <= 2 < words[0]


def test_a_question(folders, compare):
    pair = folders["answers-1"], folders["answers-2"]
    text = compare(*pair, "--text", "the bank", "--context", "a dog and a cat ran")
    assert text.splitlines()[0] == "> the bank"
    assert "--context" in compare(*pair, "--text", "the bank", code=2)


@pytest.mark.parametrize(("names", "words", "code", "message"), [
    (["tone-1"], ["--text", "a"], 2, "expected two adapters or more"),
    (["tone-1", "tone-1"], ["--text", "a"], 2, "is named twice"),
    (["tone-1", "entities-1"], ["--text", "a"], 2, "expected adapters of one task"),
    (["vectors-1", "vectors-2"], ["--text", "a"], 2, "embeddings can't be read"),
    (["tone-1", "tone-2"], [], 2, "a text a line on stdin, found nothing"),
    (["tone-1", "tone-2"], ["--text", "a", "--pair", "b"], 2, "single texts"),
    (["tone-1", "tone-2"], ["--text", "a", "--max-new-tokens", "0"], 2, "--max-new-tokens"),
    (["tone-1", "nobody"], ["--text", "a"], 1, "'nobody': there is no registry"),
])  # fmt: skip
def test_what_is_refused(folders, compare, names, words, code, message):
    told = compare(*(folders.get(name, name) for name in names), *words, code=code)
    assert message in told
    assert len(told.splitlines()) == 1


def test_adapters_of_two_bases(folders, compare, tmp_path):
    other = make_base("bert", tmp_path / "other", seed=5)
    folder = make_adapter(other, tmp_path / "tone-3", task="text-classification", labels=3)
    identity = Backbone.from_pretrained(str(other)).identity
    Manifest(task="text-classification", base=identity, labels=("down", "flat", "up")).write(folder)
    told = compare(folders["tone-1"], folder, "--text", "a", code=1)
    assert "trained on" in told
    assert told.endswith("`lorary eval` measures adapters of several bases\n")


def test_answers_of_every_shape(capsys):
    mask = {"token_str": " dog", "score": 0.5, "sequence": "a dog"}
    cases = [
        ("fill-mask", [[mask], [mask]], "dog (0.500)"),
        ("fill-mask", [[[mask], [mask]], [[mask], [mask]]], "dog, dog (0.500)"),
        ("text-classification", [[], []], "-"),
        ("token-classification", [[], [{"start": 0, "end": 1, "entity_group": "X", "score": 1.0}]], "(nothing)"),
        ("question-answering", [{"answer": "", "score": 1.0}] * 2, "(no answer) (1.000)"),
        ("text-generation", ["one\ntwo", "one\ntwo\n"], "one"),
    ]
    for task, (one, other), shown in cases:
        show_compared(task, ["a dog"], {"x": [one], "other": [other]})
        lines = capsys.readouterr().out.splitlines()
        assert lines[:2] == ["> a dog", f"  x      {shown}"]
        assert lines[-1] == f"The same answer to {int(task != 'token-classification')} of 1 text."
