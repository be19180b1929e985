"""A run that is killed, stopped or cut off by a full disk goes on, and ends as an unbroken one would have."""

from __future__ import annotations

import importlib.metadata
import json
import os
import resource
import signal
from contextlib import contextmanager
from datetime import datetime
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from lorary.hub.cli.main import main
from lorary.hub.errors import InterruptedRunError, TrainingError
from lorary.hub.registry import Registry
from lorary.training import interrupt, save, train, unfinished
from lorary.training.checkpoints import latest
from lorary.training.progress import Reporter
from lorary.training.save import output_folder
from lorary.training.unfinished import Unfinished
from runs import SHORT
from samples import tone_rows, write_jsonl
from stops import Signal

# 32 rows to learn and 8 to judge by: four steps an epoch, with a checkpoint in the middle of each.
SETTINGS = {
    "training.epochs": 3, "training.early_stopping": 2, "training.gradient_accumulation": 2, "training.batch_size": 4,
    "training.checkpoint_steps": 2, "lora.dropout": 0.2, "data.validation_size": 0.2,
}  # fmt: skip


@pytest.fixture
def make_recipe(make_recipe):
    """Of as few held-out rows as can be: what is measured is no matter."""
    return partial(make_recipe, held=4)


@pytest.fixture(scope="module")
def digests():
    return {}


@pytest.fixture
def whole(digests, make_recipe, tmp_path):
    """The digest of an unbroken run of these settings; the run is made once."""
    if not digests:
        recipe = make_recipe(rows=40, output=str(tmp_path / "whole"), **SETTINGS)
        digests["whole"] = train(recipe, Registry(tmp_path / "whole.db")).digest
    return digests["whole"]


# One run each, killed at each of these moments in turn and gone on with.
MOMENTS = (
    ("step 1", "step 6", "step 7", "measuring", "saving", "checking the saved files", "registering"),
    ("torch.save", "commit", "prune"),
)


def test_killed_at_any_moment_a_run_goes_on_to_the_same_adapter(live, whole, make_recipe, tmp_path):
    recipe = make_recipe(rows=40, **SETTINGS)
    for number, moments in enumerate(MOMENTS):
        out, registry = tmp_path / f"out-{number}", Registry(tmp_path / f"{number}.db")
        path = tmp_path / f"{number}.yaml"
        path.write_text(recipe.model_copy(update={"output": str(out)}).to_yaml())
        order = {"recipe": str(path), "registry": str(registry.path)}
        for moment in moments:
            assert live(**order, at=moment) == [-signal.SIGKILL, ""], moment
            assert registry.verify() == [] or not registry.path.exists()
            path.write_text(recipe.model_copy(update={"output": None}).to_yaml())
            order["resume"] = str(out)
        assert live(**order) == [0, whole], moments
        assert not Unfinished(out).folder.exists()
        (version,) = registry.versions("tiny")
        assert version.metrics["test"].keys() == version.metrics["untrained"].keys()
        assert version.manifest.provenance["steps"] == 12
        assert [step for step, _ in version.manifest.provenance["curve"]] == list(range(1, 13))
        assert registry.verify() == []


def test_killed_while_its_folder_is_removed_a_run_is_finished(make_recipe, registry, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def kill(folder, **_):
        if (folder / "result.json").exists():  # it is the run's own
            (folder / "result.json").unlink()
            raise Killed

    recipe = make_recipe(rows=16, **{"training.epochs": 1})
    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "shutil", SimpleNamespace(rmtree=kill))
        with pytest.raises(Killed):
            train(recipe, registry)
    reporter = Reporter()
    assert train(recipe, registry, reporter, resume=True) == registry.resolve("tiny@1")
    assert reporter.notices == [f"{tmp_path / 'out'} is finished already: it is tiny@1"]


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("text-classification", {"method": "qlora"}),
        ("text-generation", {"training.packing": True}),
        ("token-classification", {"dtype": "bfloat16"}),
        ("fill-mask", {"training.max_length": 32}),
        ("fill-mask", {"training.max_length": 32, "family": "t5-spans"}),
        ("fill-mask", {"training.max_length": 32, "family": "bart"}),
    ],
)
def test_every_kind_of_run_goes_on_exactly(task, settings, make_recipe, registry, tmp_path):
    settings = {**SETTINGS, **settings, "training.early_stopping": 0, "training.checkpoint_steps": 1}
    whole = train(make_recipe(task, rows=16, **settings), registry)
    recipe = make_recipe(task, rows=16, output=str(tmp_path / "broken"), **settings)
    with pytest.raises(InterruptedRunError, match=r"step [1234] of"):
        train(recipe, registry, Signal("step 1"))
    reporter = Reporter()
    assert train(recipe, registry, reporter, resume=True).digest == whole.digest
    assert any(line.startswith("going on after step") for line in reporter.notices)


def test_early_stopping_counts_on_from_where_it_was(make_recipe, registry, tmp_path):
    """Killed after the epoch that ended the run, before its best epoch was read back: nothing more is trained."""
    settings = {**SETTINGS, "training.epochs": 12, "training.learning_rate": 0.3, "training.early_stopping": 1}
    whole = train(make_recipe(rows=60, **settings), registry)
    steps = whole.manifest.provenance["steps"]
    assert steps < 12 * 6
    recipe = make_recipe(rows=60, output=str(tmp_path / "broken"), **settings)
    for moment in (f"step {steps - 3}", "measuring", "saving"):
        with pytest.raises(InterruptedRunError, match="nothing was registered; step"):
            train(recipe, registry, Signal(moment), resume=Unfinished(tmp_path / "broken").resumable)
    again = train(recipe, registry, resume=True)
    assert again.digest == whole.digest
    assert json.loads((tmp_path / "broken" / "lorary.json").read_text())["provenance"]["steps"] == steps


def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(make_recipe, registry, tmp_path):
    recipe = make_recipe(rows=40, **SETTINGS)
    reporter = Signal("step 5")
    with pytest.raises(InterruptedRunError) as caught:
        train(recipe, registry, reporter)
    out = tmp_path / "out"
    assert str(caught.value) == (
        f"tiny: stopped, nothing was registered; step 6 of 12 is kept in {out}.incomplete; "
        f"go on with: lorary train {out} --resume --registry {registry.path}"
    )
    assert "stopping after this step; once more stops at once, without a checkpoint" in reporter.notices
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    checkpoint = latest(Unfinished(out).checkpoints)
    assert checkpoint.step == 6
    assert {path.name for path in checkpoint.folder.parent.iterdir()} == {"checkpoint-4", "checkpoint-6"}


def test_a_second_ctrl_c_stops_at_once(make_recipe, registry, tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "SAME", 0.0)

    class Twice(Signal):
        def step(self, done, total, loss):
            if done in (5, 6):
                signal.raise_signal(signal.SIGINT)

    with pytest.raises(InterruptedRunError, match="step 4 of 12 is kept"):
        train(make_recipe(rows=40, **{**SETTINGS, "training.checkpoint_steps": 100}), registry, Twice(""))


def test_sigterm_stops_like_ctrl_c(make_recipe, registry):
    with pytest.raises(InterruptedRunError, match="step 6 of 12 is kept"):
        train(make_recipe(rows=40, **SETTINGS), registry, Signal("step 5", signal.SIGTERM))
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_stopped_before_there_is_a_checkpoint_nothing_is_left(make_recipe, registry, tmp_path):
    before = set(tmp_path.iterdir())
    with pytest.raises(InterruptedRunError, match="stopped, nothing was registered; no files are left"):
        train(make_recipe(rows=40, **SETTINGS), registry, Signal("loading the base"))
    assert {path.name for path in set(tmp_path.iterdir()) - before} == {"train.jsonl", "test.jsonl"}


def test_a_run_whose_files_are_in_place_goes_on_by_its_recipe(make_recipe, registry, tmp_path, capsys):
    own, run, recipe = tmp_path / "out" / "notes.txt", Unfinished(tmp_path / "out"), make_recipe(rows=16, **SHORT)

    class Fills(Reporter):
        def phase(self, text):
            if text == "saving":
                own.parent.mkdir()
                own.write_text("mine")

    reporter = Fills()
    with pytest.raises(TrainingError, match="Directory not empty"):
        train(recipe, registry, reporter)
    assert reporter.notices[-1].startswith("step 3 of 3 is kept in")  # what is in its place isn't the adapter
    own.unlink()
    with pytest.raises(InterruptedRunError, match="the trained adapter is in"):
        train(recipe, registry, Signal("registering"), resume=True)
    told = (run.folder / "result.json").read_text()
    (run.folder / "result.json").write_text(told[:20])
    with pytest.raises(TrainingError, match=r"result\.json: not valid JSON .*; put it back as it was, or remove"):
        train(recipe, registry, resume=True)
    (run.folder / "result.json").write_text(told)
    words = ["train", str(tmp_path / "recipe.yaml"), "--registry", str(registry.path)]
    Path(words[1]).write_text(recipe.to_yaml())
    assert main(words) == 1
    assert f"is in its place: the trained adapter is in {run.final}; put it into" in capsys.readouterr().err
    assert main([*words, "--resume"]) == 0
    assert registry.resolve("tiny@1").metrics["test"]


def test_a_folder_of_somebody_elses_files_is_left_alone(make_recipe, registry, tmp_path):
    own = tmp_path / "out.incomplete" / "notes.txt"
    own.parent.mkdir()
    own.write_text("mine")
    with pytest.raises(TrainingError, match=r"out.incomplete: holds files that aren't a run's; name another output"):
        train(make_recipe(rows=16), registry)
    assert own.read_text() == "mine"


@contextmanager
def largest_file(size: int):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_already_is_told_of(make_recipe, registry, tmp_path):
    recipe = make_recipe(rows=16)
    with largest_file(0), pytest.raises(TrainingError, match=r"can't be written \(.+\); free the disk"):
        train(recipe, registry)
    assert not (tmp_path / "out.incomplete").exists()


@pytest.mark.parametrize("largest", ["adapter_model.safetensors", "optimizer.pt", "complete.json"])
def test_a_full_disk_loses_nothing(largest, whole, make_recipe, registry, tmp_path):
    run = Unfinished(tmp_path / "broken")
    recipe = make_recipe(rows=40, output=str(run.final), **SETTINGS)

    class Fills(Reporter):
        """After the first checkpoints, files as large as ``largest`` can't be written any more."""

        def step(self, done, total, loss):
            if done == 7:
                size = (run.checkpoint.folder / largest).stat().st_size
                limit = largest_file(size // 2)
                limit.__enter__()
                self.limit = limit

    reporter = Fills()
    try:
        with pytest.raises(TrainingError, match=r"can't be written \(.+\); free the disk or name another output"):
            train(recipe, registry, reporter)
    finally:
        reporter.limit.__exit__(None, None, None)
    assert f"step 6 of 12 is kept in {run.folder}" in reporter.notices[-1]
    assert {path.name for path in run.checkpoints.iterdir()} <= {"checkpoint-4", "checkpoint-6"}
    assert train(recipe, registry, resume=run.final).digest == whole


@pytest.fixture
def stopped(make_recipe, registry, tmp_path):
    """A run that was stopped after its sixth step, and its recipe."""
    recipe = make_recipe(rows=40, **SETTINGS)
    with pytest.raises(InterruptedRunError):
        train(recipe, registry, Signal("step 5"))
    return Unfinished(tmp_path / "out"), recipe


def test_what_has_changed_is_refused_by_name(stopped, make_recipe, registry, tmp_path):
    run, recipe = stopped
    other = recipe.model_copy(update={"training": recipe.training.model_copy(update={"learning_rate": 0.5})})
    with pytest.raises(TrainingError, match=r"training.learning_rate: 0.01 in the run, 0.5 now"):
        train(other, registry, resume=True)
    staged = recipe.model_copy(update={"from_": "legal@1", "start": "stack", "strategy": "intermediate"})
    (said, *rest) = run.differences(staged)
    assert said == "from: nothing in the run, 'legal@1' now"
    assert rest == ["start: nothing in the run, 'stack' now", "strategy: 'fine-tune' in the run, 'intermediate' now"]
    with pytest.raises(TrainingError, match="an unfinished run is in its place: step 6 of 12 is kept"):
        train(recipe, registry)
    rows = Path(recipe.data.train).read_text()
    write_jsonl(tmp_path / "train.jsonl", tone_rows(40, seed=5))
    with pytest.raises(TrainingError, match=r"can't go on as it began, the rows have changed \(train.jsonl\)"):
        train(recipe, registry, resume=True)
    Path(recipe.data.train).write_text(rows)
    weights = Path(recipe.base) / "model.safetensors"
    kept = weights.read_bytes()
    from safetensors.torch import load_file, save_file

    try:
        save_file({key: value + 1 for key, value in load_file(weights).items()}, weights, {"format": "pt"})
        with pytest.raises(TrainingError, match="began on another base than"):
            train(recipe, registry, resume=True)
    finally:
        weights.write_bytes(kept)
    assert run.checkpoint.step == 6  # nothing of this has touched it


def test_other_versions_of_packages_are_told(stopped, registry):
    run, recipe = stopped
    run.note_fact("environment", {**run.facts()["environment"], "torch": "1.0"})
    reporter = Reporter()
    train(recipe, registry, reporter, resume=True)
    installed = importlib.metadata.version("torch")  # torch itself may add the kind of its build
    told = f"begun with other versions, so the result may differ a little: torch 1.0 -> {installed}"
    assert told in reporter.notices


def test_a_damaged_checkpoint_does_not_count(stopped, whole, registry):
    run, recipe = stopped
    path = run.checkpoint.folder / "optimizer.pt"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    assert run.checkpoint.step == 4
    assert train(recipe, registry, resume=True).digest == whole


def test_without_a_whole_checkpoint_a_run_begins_anew_and_says_so(stopped, registry):
    run, recipe = stopped
    for path in run.checkpoints.glob("*/optimizer.pt"):
        path.unlink()
    reporter = Signal("loading the base")
    with pytest.raises(InterruptedRunError, match="no files are left"):
        train(recipe, registry, reporter, resume=True)
    assert f"{run.folder} has no whole checkpoint, so the run begins at its first step" in reporter.notices


def test_one_process_at_a_time(stopped, registry):
    run, recipe = stopped
    run.claim()
    try:
        with pytest.raises(TrainingError, match=f"is being trained by process {os.getpid()}; wait for it, or stop it"):
            train(recipe, registry, resume=True)
    finally:
        run.release()
    assert run.checkpoint.step == 6


def test_runs_that_begin_in_one_second_have_folders_of_their_own(make_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(rows=16, output=None)
    monkeypatch.setattr(save, "datetime", SimpleNamespace(now=lambda zone: datetime(2026, 11, 24, 12, tzinfo=zone)))
    assert [output_folder(recipe).name for _ in range(3)] == [
        "tiny-20261124-120000", "tiny-20261124-120000-2", "tiny-20261124-120000-3",
    ]  # fmt: skip


def test_runs_whose_names_begin_alike_are_told_apart(make_recipe, registry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipes = {name: make_recipe(rows=16, name=name, output=None) for name in ("tiny", "tiny-domain", "tiny-2")}
    for name, recipe in recipes.items():
        with pytest.raises(InterruptedRunError, match=f"lorary train runs/{name}-2"):
            train(recipe, registry, Signal("step 1"))
    other = recipes["tiny"].training.model_copy(update={"epochs": 3.0})
    with pytest.raises(TrainingError, match=r"; runs/tiny-\d{8}-\d{6}\S* differs: training.epochs: 2.0 in the run"):
        train(recipes["tiny"].model_copy(update={"training": other}), registry, resume=True)
    for name, recipe in recipes.items():
        assert train(recipe, registry, resume=True).reference == f"{name}@1"
    with pytest.raises(TrainingError, match="no unfinished run of this recipe under runs/; leave"):
        train(recipes["tiny"], registry, resume=True)


def test_the_command_goes_on_by_folder_and_by_recipe(make_recipe, registry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(rows=40, **SETTINGS).model_copy(update={"output": None})
    Path("recipe.yaml").write_text(recipe.to_yaml())
    place = ["--registry", str(registry.path)]
    assert main(["train", "recipe.yaml", "--resume", *place]) == 1
    assert "no unfinished run of this recipe under runs/" in capsys.readouterr().err
    with pytest.raises(InterruptedRunError):
        train(recipe, registry, Signal("step 5"))
    (folder,) = Path("runs").iterdir()
    final = str(folder).removesuffix(".incomplete")
    assert main(["train", "recipe.yaml", "--resume", "--set", "training.seed=1", *place]) == 1
    assert "training.seed: 42 in the run, 1 now" in capsys.readouterr().err
    assert main(["train", final, "--resume", "--seed", "1", *place]) == 2
    assert main(["train", str(folder), *place]) == 2
    assert "is a folder; expected a recipe, or --resume to go on" in capsys.readouterr().err
    assert main(["train", "recipe.yaml", "--resume", *place]) == 0
    assert f"Files: {final}" in capsys.readouterr().out
    assert main(["train", final, "--resume", *place]) == 0
    assert "in the catalogue already, as tiny@1" in capsys.readouterr().out
    assert main(["train", final, "--resume", "--registry", "other.db"]) == 1
    putting = f"lorary import {final} --registry other.db"
    assert f"finished, but not in {Path.cwd() / 'other.db'}; put it there with: {putting}\n" in capsys.readouterr().err
    assert main(["train", "runs/gone", "--resume", *place]) == 1
    assert "runs/gone.incomplete: no such unfinished run" in capsys.readouterr().err
