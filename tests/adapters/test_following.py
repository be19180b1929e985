"""Followed aliases: picked up without a restart, and what serves stays where that fails."""

import gc
import math
import os
import subprocess
import sys
import threading
import time
import warnings
import weakref

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.errors import FollowWarning, UnknownReferenceError, UsageError
from tiny import make_adapter
from variants import change, make_variants

ROW = [[7, 8, 9]]


@pytest.fixture
def versions(bases, tmp_path, registry):
    """Three versions of `sql` in the registry, the first one `prod`."""
    first = make_adapter(bases("llama"), tmp_path / "first", task="text-generation", r=2)
    folders = make_variants(first, ["v1", "v2", "v3"])
    for folder in folders.values():
        registry.add(folder, name="sql", domain="code")
    registry.alias("sql", "prod", 1)
    return folders


@pytest.fixture
def backbone(bases, registry):
    return Backbone.from_pretrained(str(bases("llama")), registry=registry)


def logits(backbone, name):
    return backbone.logits(ROW, name)[0]


def expected(bases, folder):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    return logits(backbone, backbone.load(folder).name)


def until(holds, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it didn't come to pass"
        time.sleep(0.01)


def test_a_moved_alias_is_picked_up(bases, backbone, registry, versions):
    backbone.follow("sql@prod", interval=0.05)
    assert torch.equal(logits(backbone, "sql"), expected(bases, versions["v1"]))
    registry.alias("sql", "prod", 2)
    until(lambda: backbone.stats().followed[0].digest == registry.resolve("sql@2").digest)
    assert torch.equal(logits(backbone, "sql"), expected(bases, versions["v2"]))
    backbone.unfollow("sql")
    registry.alias("sql", "prod", 3)
    time.sleep(0.2)
    assert torch.equal(logits(backbone, "sql"), expected(bases, versions["v2"]))
    assert backbone.stats().followed == ()


def test_a_shorter_interval_counts_at_once(backbone, registry, versions):
    """While the thread waits for the end of a longer one."""
    others = set(threading.enumerate())
    backbone.follow("sql@prod", interval=3600)
    (thread,) = set(threading.enumerate()) - others
    backbone.follow("sql", "latest", interval=0.02)
    registry.alias("sql", "prod", 2)
    until(lambda: backbone.stats().followed[0].digest == registry.resolve("sql@2").digest)
    thread.join(20)
    assert not thread.is_alive()  # one looks for all
    assert backbone._following.interval == 0.02
    backbone.unfollow("latest")
    assert backbone._following.interval == 3600


def test_an_interval_without_end(backbone, versions):
    """Who looks by ``refresh`` alone; a thread can't wait for so long."""
    others = set(threading.enumerate())
    backbone.follow("sql@prod", interval=math.inf)
    (thread,) = set(threading.enumerate()) - others
    thread.join(0.2)
    assert thread.is_alive()


def test_the_others_are_followed_on_when_one_is_not(backbone, registry, versions):
    """And the last one's thread ends with it, until something is followed again."""
    others = set(threading.enumerate())
    backbone.follow("sql@prod", interval=0.02)
    (thread,) = set(threading.enumerate()) - others
    backbone.follow("sql@prod", "second", interval=0.02)
    backbone.unfollow("second")
    registry.alias("sql", "prod", 2)
    until(lambda: backbone.stats().followed[0].digest == registry.resolve("sql@2").digest)
    backbone.unfollow("sql")
    thread.join(20)
    assert not thread.is_alive()
    backbone.follow("sql@prod", interval=0.02)
    registry.alias("sql", "prod", 3)
    until(lambda: backbone.stats().followed[0].digest == registry.resolve("sql@3").digest)


@pytest.mark.parametrize("change", ["unload", "unfollow", "follow"])
def test_what_is_said_while_a_version_is_picked_up_is_what_holds(backbone, registry, versions, monkeypatch, change):
    """It takes effect after that version, which doesn't come back when all is done."""
    backbone.follow("sql@prod", interval=1000)
    registry.alias("sql", "old", 1)
    going, done = threading.Event(), threading.Event()
    load = backbone._following._load

    def slowly(reference, *more):
        if reference == "sql@prod":
            going.set()
            assert done.wait(20)
        return load(reference, *more)

    monkeypatch.setattr(backbone._following, "_load", slowly)
    registry.alias("sql", "prod", 2)
    call = {
        "unload": lambda: backbone.unload("sql"),
        "unfollow": lambda: (backbone.unfollow("sql"), backbone.load("sql@3", "sql")),
        "follow": lambda: backbone.follow("sql@old", "sql", interval=1000),
    }[change]
    looking, saying = threading.Thread(target=backbone.refresh), threading.Thread(target=call)
    looking.start()
    assert going.wait(20)
    saying.start()
    saying.join(0.2)
    done.set()
    looking.join(20)
    saying.join(20)
    serves = {name: backbone._residency.get(name).digest for name in backbone.adapters}
    wanted = {"unload": {}, "unfollow": {"sql": "sql@3"}, "follow": {"sql": "sql@1"}}[change]
    assert serves == {name: registry.resolve(reference).digest for name, reference in wanted.items()}


def test_another_process_moves_the_alias(bases, backbone, registry, versions):
    backbone.follow("sql@prod", interval=0.05)
    move = "import sys; from lorary.hub import Registry; Registry(sys.argv[1]).alias('sql', 'prod', 3)"
    subprocess.run([sys.executable, "-c", move, str(registry.path)], check=True, timeout=60)
    until(lambda: backbone.stats().followed[0].digest == registry.resolve("sql@3").digest)
    assert torch.equal(logits(backbone, "sql"), expected(bases, versions["v3"]))


def test_a_call_in_flight_keeps_its_version(backbone, registry, versions):
    backbone.follow("sql@prod", interval=3600)
    ids = torch.tensor([[2, 7, 8, 9]])
    with backbone.using("sql") as model:
        before = model(input_ids=ids).logits
        registry.alias("sql", "prod", 2)
        assert backbone.refresh() == ["sql"]
        assert torch.equal(model(input_ids=ids).logits, before)
    assert backbone.refresh() == []


def test_a_bare_name_follows_its_latest_version(backbone, registry, versions, bases, tmp_path):
    backbone.follow("sql", "latest", interval=3600)
    fourth = make_variants(versions["v1"], ["w0", "w1", "w2", "v4"])["v4"]
    registry.add(fourth, name="sql", domain="code")
    assert backbone.refresh() == ["latest"]
    assert torch.equal(logits(backbone, "latest"), expected(bases, fourth))


def test_a_version_that_cant_be_loaded_leaves_the_one_before(bases, backbone, registry, versions, monkeypatch):
    backbone.follow("sql@prod", interval=3600)
    before = logits(backbone, "sql")
    broken = versions["v3"]
    change(broken, lambda tensors: [t.zero_() for key, t in tensors.items() if "lora_B" in key])
    bad = registry.add(broken, name="sql", domain="code")
    registry.alias("sql", "prod", bad.number)
    with pytest.warns(FollowWarning, match="every lora_B is zero"):
        assert backbone.refresh() == []
    assert torch.equal(logits(backbone, "sql"), before)
    assert "every lora_B is zero" in backbone.stats().followed[0].error
    tried, load = [], backbone._following._load
    monkeypatch.setattr(backbone._following, "_load", lambda *asked: tried.append(asked) or load(*asked))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.tag("sql@1", "unrelated")  # another write: the version was tried, and isn't tried again
        assert backbone.refresh() == []
        assert not tried
        registry.alias("sql", "prod", 2)
        assert backbone.refresh() == ["sql"]
    assert torch.equal(logits(backbone, "sql"), expected(bases, versions["v2"]))
    assert backbone.stats().followed[0].error is None


def test_a_warning_that_is_an_error_does_not_end_the_looking(backbone, registry, versions):
    backbone.follow("sql@prod", interval=0.02)
    broken = versions["v3"]
    change(broken, lambda tensors: [t.zero_() for key, t in tensors.items() if "lora_B" in key])
    bad = registry.add(broken, name="sql", domain="code")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        registry.alias("sql", "prod", bad.number)
        until(lambda: backbone.stats().followed[0].error is not None)
        registry.alias("sql", "prod", 2)
        until(lambda: backbone.stats().followed[0].digest == registry.resolve("sql@2").digest)


def test_lack_of_slots_passes(bases, registry, versions):
    backbone = Backbone.from_pretrained(str(bases("llama")), registry=registry, slots=1, slot_wait=0)
    backbone.follow("sql@prod", interval=3600)
    registry.alias("sql", "prod", 2)
    with backbone.using("sql"):
        with pytest.warns(FollowWarning, match="no slot for 'sql'"):
            assert backbone.refresh() == []
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert backbone.refresh() == []
    assert backbone.refresh() == ["sql"]


def test_figures_dont_wait_for_what_is_being_picked_up(backbone, registry, versions, monkeypatch):
    first = backbone.follow("sql@prod", interval=1000).digest
    going, done = threading.Event(), threading.Event()
    load = backbone._following._load

    def slowly(*asked):
        going.set()
        assert done.wait(20)
        return load(*asked)

    monkeypatch.setattr(backbone._following, "_load", slowly)
    registry.alias("sql", "prod", 2)
    looking = threading.Thread(target=backbone.refresh)
    looking.start()
    assert going.wait(20)
    found = []
    asking = threading.Thread(target=lambda: found.append(backbone.stats().followed[0].digest), daemon=True)
    asking.start()
    asking.join(10)
    done.set()
    looking.join(20)
    assert found == [first]
    assert backbone.stats().followed[0].digest == registry.resolve("sql@2").digest


def test_a_registry_that_goes_away_and_comes_back(backbone, registry, versions):
    backbone.follow("sql@prod", interval=3600)
    away = registry.path.with_suffix(".away")
    registry.path.rename(away)
    with pytest.warns(FollowWarning, match="there is no registry"):
        assert backbone.refresh() == []
    away.rename(registry.path)
    assert backbone.refresh() == []
    assert backbone.stats().followed[0].error is None
    registry.alias("sql", "prod", 2)
    assert backbone.refresh() == ["sql"]


def test_two_writes_in_one_tick_of_the_clock_are_two(registry, versions):
    """The second write leaves size and time as they were; SQLite's own count tells them apart."""
    registry.alias("sql", "prod", 2)
    status = registry.path.stat()
    stamp = registry.stamp()
    registry.alias("sql", "prod", 3)
    os.utime(registry.path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert registry.path.stat().st_size == status.st_size
    assert registry.stamp() != stamp
    assert Registry(registry.path).stamp() == registry.stamp()


def test_each_name_stays_with_the_registry_that_it_was_followed_in(bases, registry, versions, tmp_path, monkeypatch):
    other, backbone = Registry(tmp_path / "other.db"), Backbone.from_pretrained(str(bases("llama")))
    for folder in versions.values():
        other.add(folder, name="sql", domain="code")
    other.alias("sql", "prod", 3)
    digests = [version.digest for version in registry.versions("sql")]
    for place, name in ((registry, "first"), (other, "second"), (registry, "third")):
        monkeypatch.setenv("LORARY_REGISTRY", str(place.path))
        backbone.follow("sql@prod", name, interval=3600)
    monkeypatch.setenv("LORARY_REGISTRY", str(tmp_path / "none.db"))

    def served():
        return {state.name: digests.index(state.digest) + 1 for state in backbone.stats().followed}

    assert (backbone.refresh(), served()) == ([], {"first": 1, "second": 3, "third": 1})
    registry.alias("sql", "prod", 2)
    assert (backbone.refresh(), served()) == (["first", "third"], {"first": 2, "second": 3, "third": 2})
    other.alias("sql", "prod", 1)
    assert (backbone.refresh(), served()) == (["second"], {"first": 2, "second": 1, "third": 2})
    assert backbone.refresh() == []
    assert [state.error for state in backbone.stats().followed] == [None] * 3


def test_unload_stops_following(backbone, registry, versions):
    backbone.follow("sql@prod", interval=3600)
    backbone.unload("sql")
    registry.alias("sql", "prod", 2)
    assert backbone.refresh() == []
    assert backbone.adapters == []
    with pytest.raises(UnknownReferenceError, match="follows no reference; followed: none"):
        backbone.unfollow("sql")


@pytest.mark.parametrize("reference", ["sql@1", "user/sql", "./sql"])
def test_what_cant_move(backbone, versions, reference):
    with pytest.raises(UsageError):
        backbone.follow(reference)


def test_an_unknown_alias_is_not_followed(backbone, versions):
    with pytest.raises(UnknownReferenceError, match="no alias 'nothing'"):
        backbone.follow("sql@nothing")
    assert backbone.stats().followed == ()
    for interval in (0, math.nan, "2"):
        with pytest.raises(UsageError, match="interval"):
            backbone.follow("sql@prod", interval=interval)


def test_the_thread_ends_with_the_backbone(bases, registry, versions):
    backbone = Backbone.from_pretrained(str(bases("llama")), registry=registry)
    others = set(threading.enumerate())
    backbone.follow("sql@prod", interval=3600)
    (thread,) = set(threading.enumerate()) - others
    assert thread.daemon
    gone = weakref.ref(backbone._following)
    del backbone
    until(lambda: gc.collect() is not None and gone() is None)
    thread.join(timeout=20)
    assert not thread.is_alive()


def test_the_interpreter_ends_while_aliases_are_followed(forks, bases, registry, versions):
    script = (
        "from lorary.adapters import Backbone; from lorary.hub import Registry\n"
        f"backbone = Backbone.from_pretrained({str(bases('llama'))!r}, registry=Registry({str(registry.path)!r}))\n"
        "backbone.follow('sql@prod', interval=0.001)\n"
        "backbone.load('sql@2', 'two', lazy=True); backbone.prefetch(['two'])\n"
        "print('done')\n"
    )
    ended = forks.run("builtins:exec", script, {"__name__": "__main__"}, whole_end=True)
    assert ended.code == 0, ended.err
    assert ended.out.strip() == "done"
