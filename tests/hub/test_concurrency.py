"""Several processes at once, and processes killed at any moment."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
from concurrent.futures import ProcessPoolExecutor

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry
from writers import write_a_lot

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

WRITERS, ROUNDS = 8, 3


def test_eight_processes_on_a_new_registry_lose_nothing(registry, tmp_path):
    sources = [
        [make_checkpoint(tmp_path / f"{p}-{n}", seed=ROUNDS * p + n) for n in range(ROUNDS)] for p in range(WRITERS)
    ]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["writers"])
    with ProcessPoolExecutor(WRITERS, mp_context=context) as pool:
        writers = [pool.submit(write_a_lot, registry.path, number, sources[number]) for number in range(WRITERS)]
        assert [writer.result(timeout=120) for writer in writers] == [None] * WRITERS
    shared = registry.versions("shared")
    assert [version.number for version in shared] == list(range(1, WRITERS * ROUNDS + 1))
    assert len({version.digest for version in shared}) == WRITERS * ROUNDS
    for number in range(WRITERS):
        assert [version.number for version in registry.versions(f"own-{number}")] == [1, 3]
        moves = [(move.from_number, move.to_number) for move in registry.alias_history(f"own-{number}")]
        assert moves == [(None, 1), (1, 2), (2, None), (None, 3)]
    moves = registry.alias_history("shared", "latest")
    assert sorted(move.to_number or 0 for move in moves) == list(range(1, WRITERS * ROUNDS + 1))
    assert [move.from_number for move in moves] == [None, *(move.to_number for move in moves[:-1])]
    assert registry.resolve("shared@latest").number == moves[-1].to_number
    assert registry.verify() == []
    assert sorted(path.name for path in tmp_path.glob("registry*")) == ["registry.db", "registry.store"]


def test_threads_share_an_instance(registry, tmp_path):
    sources = [make_checkpoint(tmp_path / str(n), seed=n) for n in range(6)]
    threads = [threading.Thread(target=registry.add, args=(source,), kwargs={"name": "a"}) for source in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(registry.versions("a")) == 6
    assert registry.verify() == []


def killed_at(step, action):
    """Run ``action`` in a fork that kills itself at its ``step``-th call of a C function; True if it got that far."""
    if child := os.fork():
        return os.WIFSIGNALED(os.waitpid(child, 0)[1])
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        if event == "c_call":
            calls += 1
            if calls == step:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(count)
    try:
        action()
    finally:
        os._exit(0)


@pytest.mark.parametrize("what", ["add", "remove"])
def test_a_kill_at_any_moment_leaves_a_clean_registry(tmp_path, what):
    source, before = make_checkpoint(tmp_path / "new", seed=1), Registry(tmp_path / "before" / "registry.db")
    before.add(make_checkpoint(tmp_path / "old"), name="a")
    if what == "remove":
        before.add(source, name="a")
    outcomes, step = set(), 1
    while True:
        registry = Registry(shutil.copytree(before.path.parent, tmp_path / str(step)) / "registry.db")

        def action(registry=registry):
            registry.add(source, name="a") if what == "add" else registry.remove("a@2")

        was_killed = killed_at(step, action)
        assert [finding for finding in registry.verify() if finding.level == "error"] == []
        outcomes.add(len(registry.versions("a")))
        if not was_killed:
            break
        registry.add(source, name="a")  # and the registry works on
        assert len(registry.versions("a")) == 2
        step += max(11, step // 8)
    assert outcomes == {1, 2}  # kills fell before and after the commit


def test_a_removal_does_not_take_an_object_from_under_an_addition(registry, tmp_path, monkeypatch):
    """Another process removes the only version with some of the files just before the new one's rows are written."""
    registry.add(make_checkpoint(tmp_path / "a", seed=0), name="old")
    insert = registry._insert

    def removed_first(*arguments):
        Registry(registry.path).remove("old")
        return insert(*arguments)

    monkeypatch.setattr(registry, "_insert", removed_first)
    registry.add(make_checkpoint(tmp_path / "b", seed=1), name="new")
    assert registry.verify() == []
    assert registry.checkpoint("new").rank == 2


def test_the_same_checkpoint_from_two_processes_is_one_version(registry, tmp_path, monkeypatch):
    """Another process registers the same checkpoint just before this one's rows are written."""
    source = make_checkpoint(tmp_path / "a")
    insert = registry._insert

    def registered_first(*arguments):
        Registry(registry.path).add(source, name="a")
        return insert(*arguments)

    monkeypatch.setattr(registry, "_insert", registered_first)
    assert registry.add(source, name="a").number == 1
    assert len(registry.versions()) == 1
    assert registry.verify() == []
