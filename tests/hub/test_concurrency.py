"""Several processes at once, and processes killed at any moment."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")

ADD_FIVE = """
import sys
from lorary.hub import Registry
registry = Registry(sys.argv[1])
for folder in sys.argv[2:]:
    version = registry.add(folder, name="shared", tags=["t"])
    registry.alias("shared", "latest", version.number)
    registry.versions()
"""


def test_four_processes_on_a_new_registry(registry, tmp_path):
    sources = [[str(make_checkpoint(tmp_path / f"{p}-{n}", seed=10 * p + n)) for n in range(5)] for p in range(4)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", ADD_FIVE, str(registry.path), *group], stderr=subprocess.PIPE, text=True
        )
        for group in sources
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert errors == [""] * 4
    assert [version.number for version in registry.versions("shared")] == list(range(1, 21))
    assert registry.verify() == []


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
    source = make_checkpoint(tmp_path / "new", seed=1)
    outcomes, step = set(), 1
    while True:
        registry = Registry(tmp_path / str(step) / "registry.db")
        registry.add(make_checkpoint(tmp_path / "old"), name="a")
        if what == "remove":
            registry.add(source, name="a")

        def action(registry=registry):
            registry.add(source, name="a") if what == "add" else registry.remove("a@2")

        was_killed = killed_at(step, action)
        assert [finding for finding in registry.verify() if finding.level == "error"] == []
        outcomes.add(len(registry.versions("a")))
        if not was_killed:
            break
        registry.add(source, name="a")  # and the registry works on
        assert len(registry.versions("a")) == 2
        step += max(7, step // 12)
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
