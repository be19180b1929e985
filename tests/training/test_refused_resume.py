"""Runs that can't be gone on with: what is wrong is one error that names its file, and they stay as they were."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorary.hub.cli.main import main
from lorary.hub.errors import InterruptedRunError, LoraryError, TrainingError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.experiments.ablation import ablate
from lorary.training.experiments.curve import learning_curve
from lorary.training.resume import begin
from lorary.training.strategies.parent import find_parent
from lorary.training.unfinished import Unfinished
from samples import tag_rows, tone_rows, write_jsonl
from stops import Signal
from tiny import make_adapter

STEPS = {"training.checkpoint_steps": 2, "training.early_stopping": 0, "data.validation_size": 0.25}


@pytest.fixture
def begun(make_small):
    """``begun(...)``: a run that was written down and has come to no checkpoint, and its recipe.

    ``base``: a folder for a base of its own.
    """

    def start(*words, command="train", options=None, base=None):
        recipe = make_small(*words, rows=16, held=4)
        if base is not None:
            recipe = recipe.model_copy(update={"base": str(shutil.copytree(recipe.base, base))})
        run = Unfinished(Path(recipe.output), command)
        run.claim()
        begin(run, recipe, load_data(recipe).provenance, None, 1, **({"options": options} if options else {}))
        run.release()
        return run, recipe

    return start


def edit(run, text, file="run.json"):
    """A file of a run, edited by hand: as ``text``, or with keys changed, or left out where the value is ``...``."""
    path = run.folder / file
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


PUT_BACK = "; put it back as it was, or remove it, and what it keeps is made again"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not valid JSON (Expecting value: line 1 column 1 (char 0))"),
        ("[1]", "expected a table of facts, found [1]"),
        ("{}", "has no 'metric', no 'metrics'"),
        ({"metric": ["f1"]}, "metric: expected 'f1', found ['f1']"),
        ({"metric": "accuracy"}, "metric: expected 'f1', found 'accuracy'"),
        ({"metrics": [0.5]}, "metrics: expected a table, found [0.5]"),
        ({"metrics": {"test": 0.5}}, "metrics: test: expected a table, found 0.5"),
        ({"metrics": {"test": {"f1": "0.5"}}}, "metrics: test, f1: expected a number, found '0.5'"),
        ({"metrics": {"test": {"f1": None}}}, "metrics: test, f1: expected a number, found nothing"),
        ({"metrics": {"test": {"accuracy": 0.5}}}, "metrics: test has no 'f1'"),
        ({"metrics": {"untrained": {"f1": 0.5}}}, "metrics: test has no 'f1'"),
    ],
)
def test_what_a_curve_keeps_of_a_run_and_was_edited_is_one_error(text, problem, begun, registry, capsys):
    run, _ = begun(command="curve", options={"points": 2, "seeds": 1, "smallest": 8})
    run.keep_part("8 rows, seed 42", {"metric": "f1", "metrics": {"test": {"f1": 0.5}}})
    path = edit(run, text, "parts/8 rows, seed 42.json")
    kept = content_of(run)
    assert main(["curve", str(run.final), "--resume", "--registry", str(registry.path)]) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lorary: error: ")]
    assert line.startswith(f"lorary: error: {path}: {problem}")
    assert line.endswith(PUT_BACK)
    assert content_of(run) == kept


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[]", "expected a table of facts, found []"),
        ("{}", "has no 'folder'"),
        ({"folder": 7}, "folder: expected a folder, found 7"),
        ({"reference": ["x@1"]}, "reference: expected a reference, found ['x@1']"),
    ],
)
def test_what_an_ablation_keeps_of_its_domain_stage_too(text, problem, begun, registry, tmp_path):
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": row["text"]} for row in tone_rows(16)])
    run, recipe = begun(command="train --ablate", options={"corpus": corpus, "seeds": 1})
    run.keep_part("domain stage", {"folder": "runs/x", "reference": "x@1"})
    path = edit(run, text, "parts/domain stage.json")
    with pytest.raises(TrainingError) as caught:
        ablate(recipe, registry, resume=run.final)
    assert str(caught.value) == f"{path}: {problem}{PUT_BACK}"


@pytest.mark.parametrize(
    ("metrics", "problem"),
    [
        ('{"test": 1}', "test: expected a table, found 1"),
        ('{"test": {"f1": [1]}}', "test, f1: expected a number, found [1]"),
    ],
)
def test_metrics_of_a_run_whose_files_are_in_place_too(metrics, problem, begun, registry):
    run, recipe = begun()
    path = edit(run, metrics, "result.json")
    run.final.mkdir()
    (run.final / "adapter_config.json").write_text("{}")
    with pytest.raises(TrainingError) as caught:
        train(recipe, registry, resume=run.final)
    assert str(caught.value).startswith(f"{path}: {problem}; put it back")


def test_rows_that_have_changed_are_told_by_their_files_alone(begun, registry):
    run, recipe = begun()
    write_jsonl(Path(recipe.data.train), tone_rows(20))
    with pytest.raises(TrainingError, match=r"the rows have changed \(train\.jsonl\)\."):
        train(recipe, registry, resume=run.final)


def test_a_parent_that_has_a_new_version_is_another_one(make_small, registry, tmp_path):
    recipe = make_small(rows=16, held=4, **{"from": "parent"})
    first, second = (
        make_adapter(Path(recipe.base), tmp_path / f"{seed}", task="text-classification", labels=2, seed=seed)
        for seed in (1, 2)
    )
    registry.add(first, name="parent", domain="finance")
    run = Unfinished(Path(recipe.output))
    run.claim()
    begin(run, recipe, load_data(recipe).provenance, find_parent(recipe, registry), 1)
    run.release()
    registry.add(second, name="parent", domain="finance")
    with pytest.raises(TrainingError, match="can't go on as it began, parent@2 is another version now"):
        train(recipe, registry, resume=run.final)


def test_tags_in_another_scheme_are_rows_that_have_changed(begun, registry):
    run, recipe = begun("token-classification")
    rows = [{**row, "tags": [tag.replace("B-", "S-") for tag in row["tags"]]} for row in tag_rows(16)]
    write_jsonl(Path(recipe.data.train), rows)
    write_jsonl(Path(recipe.data.test), rows[:4])
    with pytest.raises(TrainingError, match=r"the rows have changed \(train\.jsonl, test\.jsonl\)\."):
        train(recipe, registry, resume=run.final)


def content_of(run):
    """The files below a run's folder, but for the lock that says who worked in it last."""
    paths = [path for path in run.folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(run.folder)): path.read_bytes() for path in paths}


def other_seed(recipe):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": 1})})


REFUSED = {
    "rows": lambda run, recipe: write_jsonl(Path(recipe.data.train), tone_rows(20)),
    "no rows": lambda run, recipe: Path(recipe.data.train).unlink(),
    "bad rows": lambda run, recipe: Path(recipe.data.train).write_text("{\n"),
    "base": lambda run, recipe: run.note_fact("base", "0" * 64),
    "no base": lambda run, recipe: Path(recipe.base).rename(f"{recipe.base}-gone"),
    "processes": lambda run, recipe: run.note_fact("processes", 2),
}


@pytest.mark.parametrize("changed", ["settings", *REFUSED])
def test_a_run_that_is_refused_stays_as_it_was(changed, begun, registry, tmp_path):
    run, recipe = begun(base=tmp_path / "base")
    if changed == "settings":
        recipe = other_seed(recipe)
    else:
        REFUSED[changed](run, recipe)
    kept = content_of(run)
    with pytest.raises(LoraryError):
        train(recipe, registry, resume=run.final)
    assert content_of(run) == kept


def test_checkpoints_of_a_run_that_is_refused_stay_too(make_small, registry):
    recipe = make_small(rows=16, held=4, **{"training.epochs": 1, "training.batch_size": 2, **STEPS})
    run = Unfinished(Path(recipe.output))
    with pytest.raises(InterruptedRunError):
        train(recipe, registry, Signal("step 5"))
    shutil.copytree(run.checkpoint.folder, run.checkpoints / "checkpoint-1")
    (run.checkpoints / "checkpoint-7").mkdir()  # as a kill leaves one
    (run.checkpoints / "checkpoint-7" / "optimizer.pt").write_bytes(b"half")
    kept = content_of(run)
    with pytest.raises(TrainingError, match=r"training\.seed: 42 in the run, 1 now"):
        train(other_seed(recipe), registry, resume=run.final)
    assert content_of(run) == kept


def test_options_that_are_refused_leave_a_comparison_as_it_was(begun, registry):
    run, recipe = begun(command="curve", options={"points": 2, "seeds": 1, "smallest": 8})
    kept = content_of(run)
    with pytest.raises(TrainingError, match="points: 2 in the run, 3 now"):
        learning_curve(recipe, registry, points=3, resume=run.final)
    assert content_of(run) == kept


def test_a_run_that_begins_and_fails_leaves_no_folder(make_small, registry):
    recipe = make_small(rows=16, held=4)
    Path(recipe.data.train).write_text("{\n")
    with pytest.raises(LoraryError):
        train(recipe, registry)
    assert not Unfinished(Path(recipe.output)).folder.exists()
