"""A checkpoint counts once all of it is on the disk, and only while all of it is there."""

import json
import os
import shutil

import pytest

from lorary.training.checkpoints import commit, latest, prune


@pytest.fixture
def written(tmp_path):
    """A function: a checkpoint as the trainer writes it, and makes it count."""

    def write(step, best=None):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "adapter").mkdir(parents=True)
        (folder / "adapter/weights").write_bytes(b"weights")
        state = {"global_step": step, "max_steps": 20, "best_global_step": best}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        commit(folder, 1.5)
        return folder

    return write


def test_what_counts_is_on_the_disk(written, tmp_path, monkeypatch):
    synced, usual = [], os.fsync

    def fsync(handle):
        synced.append(os.fstat(handle).st_ino)
        usual(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    folder = written(1)
    contents = [folder / name for name in ("adapter/weights", "trainer_state.json")]
    listed = synced.index((folder / "complete.json").stat().st_ino)
    assert {path.stat().st_ino for path in contents} <= set(synced[:listed])
    assert {folder.stat().st_ino, tmp_path.stat().st_ino} <= set(synced[listed:])


def test_the_newest_by_its_steps_is_the_one_to_go_on_from(written, tmp_path):
    assert latest(tmp_path) is None
    for step in (9, 10):
        written(step)
    (tmp_path / "checkpoint-none").mkdir()
    found = latest(tmp_path)
    assert (found.step, found.total, found.seconds, found.ended) == (10, 20, 1.5, False)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "complete.json").unlink(),
        lambda folder: (folder / "adapter/weights").unlink(),
        lambda folder: (folder / "adapter/weights").write_bytes(b"weightz"),
        lambda folder: (folder / "adapter/weights").write_bytes(b"weights and more"),
        lambda folder: (folder / "complete.json").write_text('{"format": 2, "seconds": 1, "files": {}}'),
        lambda folder: (folder / "complete.json").write_text("[]"),
    ],
)
def test_one_that_is_not_whole_does_not_count(written, tmp_path, damage):
    written(1)
    damage(written(2))
    assert latest(tmp_path).step == 1


def test_one_whose_best_epoch_is_gone_does_not_count(written, tmp_path):
    best = written(1)
    written(2, best=1)
    written(3, best=2)
    assert latest(tmp_path).best == tmp_path / "checkpoint-2"
    shutil.rmtree(tmp_path / "checkpoint-2")
    assert latest(tmp_path).folder == best


def test_one_that_is_half_removed_is_none(written, tmp_path, monkeypatch):
    kept, gone = written(1), written(2)
    monkeypatch.setattr(shutil, "rmtree", lambda folder, **options: None)  # killed before it has done anything
    prune(tmp_path, [kept])
    assert gone.is_dir()
    assert latest(tmp_path).folder == kept
