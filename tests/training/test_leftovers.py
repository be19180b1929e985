"""What a run leaves that was killed before it was written down: the next run clears it, and nothing else."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorary.hub.cli.main import main
from lorary.hub.errors import InterruptedRunError, TrainingError
from lorary.training import run_lock, train
from lorary.training.pretraining import PretrainRecipe
from lorary.training.save import output_folder
from lorary.training.unfinished import Unfinished
from stops import Signal

RUNS = Path("runs")
READING = "reading the data"


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def recipe(make_small):
    return make_small(rows=16, held=4, output=None)


def begin_and_stop(recipe, registry):
    """Another run, which is stopped before it's written down and clears up after itself."""
    with pytest.raises(InterruptedRunError, match="no files are left"):
        train(recipe, registry, Signal(READING))


def leave(name="tiny-20260101-000000", *files):
    """A folder as a killed run leaves it."""
    folder = RUNS / f"{name}.incomplete"
    folder.mkdir(parents=True)
    for file in ("lock", *files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text("1234\n")
    return folder


def minutes_ago(folder):
    then = time.time() - 120
    os.utime(folder, (then, then))


@pytest.mark.parametrize("what", ["train", "curve", "ablate", "pretrain"])
def test_killed_before_it_is_written_down(what, live, make_small, recipe, registry):
    made = recipe
    if what == "ablate":
        made = make_small(rows=16, held=4, output=None, **{"from": "headlines@1", "strategy": "intermediate"})
    if what == "pretrain":
        own = {"name": "village", "architecture": "llama", "data.train": recipe.data.train, "device": "cpu"}
        made = PretrainRecipe.from_flags(own)
    Path("recipe.yaml").write_text(made.to_yaml())
    moment = "reading the corpus" if what == "pretrain" else READING
    assert live("recipe.yaml", str(registry.path), what, moment) == [-signal.SIGKILL, ""]
    (left,) = RUNS.iterdir()
    assert [path.name for path in left.iterdir()] == ["lock"]
    begin_and_stop(recipe, registry)
    assert not RUNS.exists()


def test_resume_clears_it_too(recipe, registry, capsys):
    Path("recipe.yaml").write_text(recipe.to_yaml())
    for words in (["recipe.yaml"], ["runs/tiny-20260101-000000"]):
        leave()
        assert main(["train", *words, "--resume", "--registry", str(registry.path)]) == 1
        assert "no " in capsys.readouterr().err
        assert not RUNS.exists()


def test_killed_while_its_folder_was_removed(recipe, registry):
    left = leave("tiny-20260101-000000", "recipe.yaml", "checkpoints/checkpoint-3/state.json")
    begin_and_stop(recipe, registry)
    assert not left.exists()


def test_what_is_not_a_leftover_stays(recipe, registry):
    beginning = Unfinished(RUNS / "tiny-20260101-000000")
    beginning.claim()  # by another process: it reads its rows
    with pytest.raises(InterruptedRunError, match="go on with"):
        train(recipe, registry, Signal("step 2"))
    own, foreign = RUNS / "notes", leave("somebody-elses")
    own.mkdir()
    (foreign / "lock").rename(foreign / "text")
    before = sorted(RUNS.rglob("*"))
    begin_and_stop(recipe, registry)
    assert sorted(RUNS.rglob("*")) == before
    beginning.release()
    begin_and_stop(recipe, registry)
    assert not beginning.folder.exists()
    assert len(list(RUNS.glob("*.incomplete"))) == 2
    assert train(recipe, registry, resume=True).reference == "tiny@1"


@pytest.mark.parametrize("locked", [False, True])
def test_killed_before_its_lock_was_signed(locked, recipe, registry):
    """Such a folder may be another process's that has just made it: a minute later it isn't."""
    left = RUNS / "tiny-20260101-000000.incomplete"
    left.mkdir(parents=True)
    if locked:
        (left / "lock").touch()
    before = sorted(left.iterdir())
    begin_and_stop(recipe, registry)
    assert sorted(left.iterdir()) == before
    minutes_ago(left)
    begin_and_stop(recipe, registry)
    assert not RUNS.exists()


def test_a_folder_without_a_lock_in_which_something_is_stays(recipe, registry):
    left = leave("tiny-20260101-000000", "checkpoints/checkpoint-3/state.json")
    (left / "lock").unlink()
    minutes_ago(left)
    begin_and_stop(recipe, registry)
    assert [path.name for path in left.iterdir()] == ["checkpoints"]


def test_the_folder_around_a_new_run_may_be_removed_meanwhile(recipe, monkeypatch):
    usual, gone = Path.mkdir, []

    def removed(path, *arguments, **settings):
        usual(path, *arguments, **settings)
        if path == RUNS and not gone:
            gone.append(path.rmdir())  # by another process, which has removed the last run in it

    monkeypatch.setattr(Path, "mkdir", removed)
    folder = output_folder(recipe)
    assert len(gone) == 1
    assert folder.with_name(f"{folder.name}.incomplete").is_dir()


def test_one_that_was_taken_for_a_leftover_has_its_folder_anew(monkeypatch):
    """Another process clears the folder between its making and its lock."""
    run, calls = Unfinished(RUNS / "tiny-20260101-000000"), []

    def late(lock, how):
        if not calls:
            shutil.rmtree(run.folder)
        calls.append(how)
        fcntl.flock(lock, how)

    monkeypatch.setattr(run_lock, "fcntl", SimpleNamespace(**vars(fcntl) | {"flock": late}))
    run.claim()
    assert (run.folder / "lock").read_text().strip().isdigit()
    assert len(calls) == 2
    with pytest.raises(TrainingError, match="is being trained by process"):
        Unfinished(run.final).claim()


def test_a_folder_that_cant_be_cleared_is_no_obstacle(recipe, registry, monkeypatch):
    left = leave()
    (left / "lock").unlink()
    (left / "lock").mkdir()  # nothing that could be locked
    begin_and_stop(recipe, registry)
    assert left.exists()
