"""Runs that can't be gone on with: what is wrong is one error that names its file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorary.hub.cli.main import main
from lorary.hub.errors import TrainingError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.experiments.curve import learning_curve
from lorary.training.resume import begin
from lorary.training.unfinished import Unfinished
from samples import tag_rows, tone_rows, write_jsonl


@pytest.fixture
def begun(make_small):
    """``begun(...)``: a run that was written down and has come to no checkpoint, and its recipe."""

    def start(*words, command="train", options=None, **settings):
        recipe = make_small(*words, rows=16, held=4, **settings)
        run = Unfinished(Path(recipe.output), command)
        run.claim()
        begin(run, recipe, load_data(recipe).provenance, None, 1, **({"options": options} if options else {}))
        run.release()
        return run, recipe

    return start


def edit(run, text):
    """The facts of a run, edited by hand: as ``text``, or with keys changed, or left out where the value is ``...``."""
    path = run.folder / "run.json"
    if isinstance(text, dict):
        facts = {**json.loads(path.read_text()), **text}
        text = json.dumps({key: value for key, value in facts.items() if value is not ...})
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON (Expecting value: line 1 column 1 (char 0))"),
        ("{", "not valid JSON (Expecting property name"),
        ("command: train", "not valid JSON (Expecting value"),
        (b'{"command": "\xff"}', "not valid JSON ('utf-8' codec can't decode byte 0xff"),
        ('{"command": "train", "command": "curve"}', "not valid JSON (the key 'command' occurs twice)"),
        ('{"processes": NaN}', "not valid JSON (NaN isn't a JSON number)"),
        ("[" * 100_000, "not valid JSON (nested too deeply)"),
        ("null", "expected a table of facts, found nothing"),
        ("[]", "expected a table of facts, found []"),
        ('[["command", "train"]]', "expected a table of facts, found [['command', 'train']]"),
        ("7", "expected a table of facts, found 7"),
        ("{}", "has no 'command', no 'data', no 'parent', no 'processes', no 'environment'"),
        ({"data": ...}, "has no 'data'"),
        ({"environment": ..., "processes": ...}, "has no 'processes', no 'environment'"),
        ({"command": None}, "command: expected the words of a command, found nothing"),
        ({"command": ["train"]}, "command: expected the words of a command, found ['train']"),
        ({"data": None}, "data: expected a table, found nothing"),
        ({"data": [1]}, "data: expected a table, found [1]"),
        ({"parent": 3}, "parent: expected a digest or null, found 3"),
        ({"processes": "1"}, "processes: expected a whole number from 1 on, found '1'"),
        ({"processes": True}, "processes: expected a whole number from 1 on, found true"),
        ({"processes": 0}, "processes: expected a whole number from 1 on, found 0"),
        ({"environment": "torch"}, "environment: expected a table, found 'torch'"),
        ({"base": {}}, "base: expected a fingerprint, found an empty mapping"),
    ],
)
def test_facts_that_were_edited_by_hand_are_one_error(text, problem, begun, registry, capsys):
    run, _ = begun()
    path = edit(run, text)
    kept = path.read_bytes()
    capsys.readouterr()
    for words in ([str(run.final), "--resume"], [str(run.folder), "--resume"]):
        assert main(["train", *words, "--registry", str(registry.path)]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"lorary: error: {path}: {problem}")
        assert line.endswith(f"; put it back as it was, or remove {run.folder} and start anew")
    assert path.read_bytes() == kept


def test_a_recipe_says_so_too(begun, registry, make_small, tmp_path, monkeypatch):
    run, recipe = begun()
    edit(run, "[]")
    for resume in (False, True):
        with pytest.raises(TrainingError, match=r"run\.json: expected a table of facts, found \[\]"):
            train(recipe, registry, resume=resume)
    # Where the newest run of the recipe is looked for.
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    run.folder.rename("runs/tiny-1.incomplete")
    with pytest.raises(TrainingError) as caught:
        train(recipe.model_copy(update={"output": None}), registry, resume=True)
    found = "no unfinished run of this recipe under runs/; runs/tiny-1.incomplete/run.json: expected a table"
    assert str(caught.value).startswith(found)
    other = recipe.model_copy(update={"output": None, "name": "other"})
    with pytest.raises(TrainingError, match="no unfinished run of this recipe under runs/; leave --resume out"):
        train(other, registry, resume=True)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ([1], "options: expected a table, found [1]"),
        ({"points": "3"}, "options.points: expected a whole number from 1 on, found '3'"),
        ({"points": 3, "seeds": 0}, "options.seeds: expected a whole number from 1 on, found 0"),
        ({"smallest": None}, "options.smallest: expected a whole number from 1 on, found nothing"),
    ],
)
def test_options_of_a_comparison_that_were_edited_are_one_error(options, problem, begun, registry):
    run, recipe = begun(command="curve", options={"points": 2, "seeds": 1, "smallest": 8})
    edit(run, {"options": options})
    with pytest.raises(TrainingError) as caught:
        learning_curve(recipe, registry, resume=run.final)
    assert str(caught.value).startswith(f"{run.folder / 'run.json'}: {problem}; put it back")


def test_rows_that_have_changed_are_told_by_their_files_alone(begun, registry):
    run, recipe = begun()
    write_jsonl(Path(recipe.data.train), tone_rows(20))
    with pytest.raises(TrainingError, match=r"the rows have changed \(train\.jsonl\)\."):
        train(recipe, registry, resume=run.final)


def test_tags_in_another_scheme_are_rows_that_have_changed(begun, registry):
    run, recipe = begun("token-classification")
    rows = [{**row, "tags": [tag.replace("B-", "S-") for tag in row["tags"]]} for row in tag_rows(16)]
    write_jsonl(Path(recipe.data.train), rows)
    write_jsonl(Path(recipe.data.test), rows[:4])
    with pytest.raises(TrainingError, match=r"the rows have changed \(train\.jsonl, test\.jsonl\)\."):
        train(recipe, registry, resume=run.final)
