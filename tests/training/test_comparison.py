"""Comparisons that are killed go on from what is done, and end with the table of an unbroken one."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from lorary.hub.cli.main import main
from lorary.hub.errors import InterruptedRunError, TrainingError
from lorary.hub.registry import Registry
from lorary.training import train
from lorary.training.experiments import ablation
from lorary.training.experiments.ablation import ablate
from lorary.training.experiments.curve import learning_curve
from lorary.training.progress import Reporter
from lorary.training.resume import begin
from lorary.training.unfinished import Unfinished
from samples import tone_rows, write_jsonl
from stops import Signal

# 16 rows: two steps an epoch.
SETTINGS = {"training.epochs": 2, "training.batch_size": 8, "training.checkpoint_steps": 1, "lora.dropout": 0.2}


class Counting(Reporter):
    """Counts the steps that are trained."""

    steps = 0

    def step(self, done, total, loss):
        self.steps += 1


@pytest.fixture
def domain(make_small, registry, tmp_path):
    """A domain adapter in the catalogue."""
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": row["text"]} for row in tone_rows(16)])
    settings = {
        "name": "headlines", "strategy": "continual", "data.train": corpus, "data.test": None,
        "output": str(tmp_path / "domain"), "training.epochs": 1,
    }  # fmt: skip
    train(make_small("text-generation", **settings), registry)
    return "headlines@1"


def test_a_curve_that_was_killed_goes_on_to_the_same_table(live, make_small, tmp_path):
    recipe = make_small(rows=16, **SETTINGS)
    order = {"what": "curve", "registry": str(tmp_path / "registry.db"), "recipe": str(tmp_path / "recipe.yaml")}
    path = Path(order["recipe"])
    path.write_text(recipe.model_copy(update={"output": str(tmp_path / "whole")}).to_yaml())
    code, whole = live(**order)
    assert (code, '"rows": 16' in whole) == (0, True)
    path.write_text(recipe.to_yaml())
    run = Unfinished(tmp_path / "out", "curve")
    # In the middle of the second run, before the third one, and where a result is there and its checkpoints still are.
    for moment in ("16 rows, seed 42: measuring", "8 rows, seed 43: training", "forget"):
        assert live(**order, at=moment) == [-signal.SIGKILL, ""], moment
        assert run.part("8 rows, seed 42", {})["metric"] == "f1"
        path.write_text(recipe.model_copy(update={"output": None}).to_yaml())
        order["resume"] = str(run.final)
    assert live(**order) == [0, whole]
    assert not run.folder.exists()


def test_a_comparison_has_its_options_from_its_first_moment(live, make_small, registry, tmp_path):
    recipe = make_small(rows=16, **SETTINGS)
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    order = {"what": "curve", "registry": str(registry.path), "recipe": str(path)}
    assert live(**order, at="note_fact") == [-signal.SIGKILL, ""]
    with pytest.raises(TrainingError, match="can't go on as it began, points: 2 in the run, 3 now"):
        learning_curve(recipe, registry, points=3, resume=tmp_path / "out")


def test_an_ablation_that_was_killed_goes_on_to_the_same_table(live, domain, make_small, registry, tmp_path):
    recipe = make_small(family="llama", rows=16, **SETTINGS, **{"from": domain, "strategy": "intermediate"})
    order = {"what": "ablate", "registry": str(registry.path), "recipe": str(tmp_path / "recipe.yaml")}
    path = Path(order["recipe"])
    path.write_text(recipe.model_copy(update={"output": str(tmp_path / "whole")}).to_yaml())
    code, whole = live(**order)
    assert (code, "headlines@1" in whole) == (0, True)
    path.write_text(recipe.to_yaml())
    for moment in ("domain then task, seed 43: training", "task, seed 42: measuring", "comparing"):
        assert live(**order, at=moment) == [-signal.SIGKILL, ""], moment
        path.write_text(recipe.model_copy(update={"output": None}).to_yaml())
        order["resume"] = str(tmp_path / "out")
    assert live(**order) == [0, whole]
    assert not (tmp_path / "out.incomplete").exists()
    assert [version.reference for version in registry.versions()] == [domain]


def test_what_is_done_is_not_trained_again(make_small, registry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = make_small(rows=16, **SETTINGS).model_copy(update={"output": None})
    Path("recipe.yaml").write_text(recipe.to_yaml())
    with pytest.raises(
        InterruptedRunError, match=r"the comparison isn't finished; what is done is kept in runs/tiny-.*"
    ):
        learning_curve(recipe, registry, points=2, seeds=1, progress=Signal("16 rows, seed 42: training"))
    (folder,) = Path("runs").iterdir()
    final = str(folder).removesuffix(".incomplete")
    place = ["--registry", str(registry.path)]
    # It is no run of `lorary train`, and its options stay what they were.
    assert main(["train", "recipe.yaml", "--resume", *place]) == 1
    assert "no unfinished run of this recipe under runs/" in capsys.readouterr().err
    assert main(["train", final, "--resume", *place]) == 1
    assert f"is a run of `lorary curve`; go on with: lorary curve {final} --resume" in capsys.readouterr().err
    assert main(["curve", final, *place]) == 2
    assert main(["curve", "recipe.yaml", "--resume", "--points", "3", *place]) == 1
    assert "can't go on as it began, points: 2 in the run, 3 now" in capsys.readouterr().err
    reporter = Counting()
    curve = learning_curve(recipe, registry, progress=reporter, resume=True)
    assert [point.rows for point in curve.points] == [8, 16]
    assert reporter.steps == 4
    assert not Path("runs").exists()
    with pytest.raises(TrainingError, match="no unfinished run of this recipe"):
        learning_curve(recipe, registry, resume=True)


@pytest.mark.parametrize(
    ("begun", "going_on"), [("train", learning_curve), ("curve", train), ("train --ablate", train), ("curve", ablate)]
)
def test_a_run_of_another_command_is_left_as_it_is(begun, going_on, make_small, registry, tmp_path):
    recipe = make_small()
    run = Unfinished(tmp_path / "out", begun)
    run.claim()
    begin(run, recipe, {}, None, 1)
    run.keep_part("kept", 1)
    run.release()
    before = sorted(run.folder.rglob("*"))
    command = f"lorary {begun} {run.final} --resume"
    for resume in (run.final, True):
        with pytest.raises(TrainingError, match=f"is a run of `lorary {begun}`; go on with: {command}"):
            going_on(recipe, registry, resume=resume)
    with pytest.raises(TrainingError, match=f"an unfinished run is in its place: .* go on with: {command}"):
        going_on(recipe, registry)
    assert sorted(run.folder.rglob("*")) == before


def test_a_domain_stage_that_was_stopped_goes_on_with_the_ablation(make_small, registry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    like_the_stage = {"lora.rank": 16, "lora.alpha": 32}
    recipe = make_small(family="llama", rows=16, **SETTINGS, **like_the_stage).model_copy(update={"output": None})
    Path("recipe.yaml").write_text(recipe.to_yaml())
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": row["text"]} for row in tone_rows(30)])
    with pytest.raises(InterruptedRunError, match=r"what is done is kept in runs/tiny-.*lorary train --ablate runs/"):
        ablate(recipe, registry, corpus=corpus, seeds=1, progress=Signal("step 2"))
    assert len(list(Path("runs").iterdir())) == 2
    words = ["train", "recipe.yaml", "--ablate", "--resume", "--corpus", corpus, "--json"]
    assert main([*words, "--registry", str(registry.path)]) == 0
    captured = capsys.readouterr()
    assert "going on after step" in captured.err
    assert [version.reference for version in Registry(registry.path).versions()] == ["tiny-domain@1"]


def test_a_domain_stage_that_was_done_is_not_trained_again(make_small, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = make_small(family="llama", rows=16, **SETTINGS, **{"lora.rank": 16, "lora.alpha": 32, "output": None})
    corpus = write_jsonl(tmp_path / "corpus.jsonl", [{"text": row["text"]} for row in tone_rows(20)])

    def train_and_stop(*arguments, **settings):
        train(*arguments, **settings)
        raise KeyboardInterrupt  # before anything of it is noted

    monkeypatch.setattr(ablation, "train", train_and_stop)
    with pytest.raises(InterruptedRunError, match="what is done is kept"):
        ablate(recipe, registry, corpus=corpus, seeds=1)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    counted = Counting()
    ablate(recipe, registry, progress=counted, resume=True)
    assert counted.steps == 8  # of the two arms
    assert [version.reference for version in registry.versions()] == ["tiny-domain@1"]
