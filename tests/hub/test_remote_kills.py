"""`kill -9` while a push or a pull talks to the Hub: at every one of its requests, before and after it took effect."""

import os
import signal

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.remote import push

REPO = "ann/tone"


@pytest.fixture
def ann(hub, monkeypatch, tmp_path):
    """Ann is logged in, and has pushed the first of two versions."""
    hub.users["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    monkeypatch.setenv("LORARY_REGISTRY", str(tmp_path / "registry.db"))
    registry = Registry()
    registry.add(make_checkpoint(tmp_path / "one"), name="tone")
    push(registry, "tone")
    registry.add(make_checkpoint(tmp_path / "two", seed=1), name="tone")
    registry.alias("tone", "prod", 2)
    hub.requests.clear()
    return hub


def run_and_kill(hub, words, place, cut):
    """Run a command in a process of its own, which the Hub kills at its request number ``place``; how it ended."""
    pids = []
    fault = hub.fail(".*", "", skip=place, times=1, cut=cut, call=lambda: os.kill(pids[0], signal.SIGKILL))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 70
        try:
            from huggingface_hub import close_session

            os.read(read, 1)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            close_session()  # the parent's connections
            code = main(words)
        finally:
            os._exit(code)
    pids.append(child)
    os.write(write, b"x")
    status = os.waitpid(child, 0)[1]
    os.close(read)
    os.close(write)
    hub.faults.remove(fault)
    return os.waitstatus_to_exitcode(status)


@pytest.mark.parametrize("cut", ["before", "after"])
def test_push(ann, cut):
    repo, old = ann.repos[REPO], dict(ann.repos[REPO].refs)
    tags, commits = dict(repo.tags), dict(repo.commits)
    kills = 0
    while True:
        repo.refs, repo.tags, repo.commits = dict(old), dict(tags), dict(commits)
        ann.objects.clear()
        ended = run_and_kill(ann, ["push", "tone", REPO], kills, cut)
        assert ended in (0, -signal.SIGKILL)
        left = ann.files(REPO)
        assert left == commits[old["main"]] or b'"number": 2' in left["lorary-version.json"]
        if ended == 0:
            break
        kills += 1
        assert Registry().verify() == []
        assert main(["push", "tone", REPO]) == 0
        assert repo.tags["v2"] == repo.tags["prod"] == repo.refs["main"]
        assert len(repo.commits) == len(commits) + 1
    assert kills >= 8


def test_pull(ann, tmp_path):
    push(Registry(), "tone")
    kills = 0
    while True:
        from huggingface_hub import constants

        constants.HF_HUB_CACHE = str(tmp_path / f"cache-{kills}")  # the fixture puts it back
        path = tmp_path / f"there-{kills}.db"
        ended = run_and_kill(ann, ["pull", REPO, "--registry", str(path)], kills, ("before", "after")[kills % 2])
        assert ended in (0, -signal.SIGKILL)
        there = Registry(path)
        assert there.verify() == []
        if ended == 0:
            break
        kills += 1
        assert main(["pull", REPO, "--registry", str(path)]) == 0
        assert there.resolve("tone@prod").digest == Registry().resolve("tone@2").digest
    assert kills >= 8
