import errno
import fcntl
import os
import shutil
import signal
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.errors import CheckpointError, RegistryConflictError, UnknownReferenceError
from lorary.hub.files.staging import _locked, abandoned, staging_folder
from lorary.hub.files.store import Store, hash_file
from lorary.hub.tables.database import writing
from lorary.hub.values import Collected, FileEntry

DAY = 86400


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.fixture
def store(registry):
    return registry.path.with_name("registry.store")


def aged(path, seconds):
    """A file or a folder, with all in it, that was last written to so long ago."""
    for one in (path, *path.rglob("*")):
        os.utime(one, (time.time() - seconds,) * 2)


def put_object(store, sha256="ab" + "c" * 62, content="12345"):
    path = store / "objects" / sha256[:2] / sha256[2:]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # an object that is there is read-only
    path.write_text(content)
    return path


def add_base(registry, folder):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    facts = {"fingerprint": "f" * 64, "architecture": "bert", "parameters": 7, "metrics": {}, "provenance": {}}
    return registry.bases.add(folder, name="tiny", **facts)


def test_what_nothing_refers_to_is_deleted(add, registry, store, tmp_path):
    add()
    base = add_base(registry, tmp_path / "base")
    needed = tree(store)
    stray = put_object(store)
    folder = store / "bases" / ("d" * 64)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (note,) = registry.verify()
    assert note.message.startswith("2 file(s)")
    everything = tree(store)
    expected = Collected(objects=1, copies=0, bases=1, bytes=7, busy=0)
    assert registry.collect(dry_run=True) == expected
    assert tree(store) == everything
    assert registry.collect() == expected
    assert tree(store) == needed
    assert not stray.exists()
    assert not folder.exists()
    assert base.folder.is_dir()
    assert registry.verify() == []
    assert registry.collect() == Collected(0, 0, 0, 0, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked process")
def test_copies_of_a_killed_process_go_and_those_of_a_running_one_stay(add, registry, store, tmp_path):
    add()
    source = tmp_path / "big"
    source.write_bytes(b"x" * 1000)
    if not (child := os.fork()):
        with registry._store.staging() as staging:
            staging.put(source)
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    with registry._store.staging() as staging:
        staging.put(source)
        for copy in staging.files.values():
            aged(copy.parent, 2 * DAY)
        assert registry.collect() == Collected(objects=0, copies=1, bases=0, bytes=1000, busy=1)
        assert all(copy.is_file() for copy in staging.files.values())
    assert registry.verify() == []


def test_copies_without_a_lock_go_after_a_day(add, registry, store):
    add()
    for name, age in (("old", DAY + 60), ("older", DAY + 90), ("new", DAY - 60), ("newer", DAY - 90)):
        (store / "incoming" / name).mkdir(parents=True)
        copy = store / "incoming" / name / "copy"
        copy.write_text("12")
        aged(copy.parent, DAY + 60)
        aged(copy, age)
    assert registry.collect() == Collected(objects=0, copies=2, bases=0, bytes=4, busy=2)
    assert tree(store / "incoming") == ["new/copy", "newer/copy"]
    with abandoned(store / "incoming" / "old") as free:
        assert not free  # it is gone, and nobody's to take


def test_where_the_file_system_has_no_locks_a_day_decides_too(add, registry, store, monkeypatch):
    def flock(lock, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    add()
    for name, age in (("old", DAY + 60), ("new", DAY - 60)):
        (store / "incoming" / name).mkdir(parents=True)
        (store / "incoming" / name / "lock").touch()
        aged(store / "incoming" / name, age)
    assert registry.collect() == Collected(objects=0, copies=1, bases=0, bytes=0, busy=1)
    assert tree(store / "incoming") == ["new/lock"]


@pytest.mark.parametrize("anew", [False, True])
def test_a_folder_that_was_taken_for_abandoned_before_it_was_locked(tmp_path, monkeypatch, anew):
    taken = []

    def locked(lock, *, wait):
        if not taken:
            taken.append(Path(lock.name).parent)
            shutil.rmtree(taken[0])
            if anew:
                taken[0].mkdir()
                (taken[0] / "lock").touch()
        return _locked(lock, wait=wait)

    monkeypatch.setattr("lorary.hub.files.staging._locked", locked)
    with staging_folder(tmp_path / "store/incoming") as folder:
        assert folder.is_dir()
        assert folder not in taken


def test_a_place_that_another_process_tidies_away_is_made_again(tmp_path, monkeypatch):
    usual, tidied = Path.mkdir, []

    def mkdir(path, *arguments, **options):
        usual(path, *arguments, **options)
        if path.name == "incoming" and not tidied:
            tidied.append(path)
            path.rmdir()

    monkeypatch.setattr(Path, "mkdir", mkdir)
    with staging_folder(tmp_path / "store/incoming") as folder:
        assert folder.is_dir()


def test_a_base_that_changes_while_it_is_copied_is_refused(registry, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    hashed = {"model.safetensors": FileEntry("0" * 64, 7)}
    with registry._store.staging() as copies, pytest.raises(CheckpointError, match="changed while it was copied"):
        copies.put_folder(tmp_path, hashed)


def test_without_a_registry_nothing_is_deleted(registry, store):
    stray = put_object(store)
    for _ in range(2):
        with pytest.raises(UnknownReferenceError, match=r"no registry at .*nothing was deleted"):
            registry.collect()
        assert stray.exists()
        registry.path.touch()  # and an empty file isn't one yet
    assert registry.path.stat().st_size == 0


def test_a_link_in_an_objects_place_is_told_and_the_rest_goes(add, registry, store, tmp_path):
    add()
    precious = tmp_path / "precious"
    precious.write_text("keep me")
    link = put_object(store)
    link.unlink()
    link.symlink_to(precious)
    put_object(store, "ef" + "c" * 62)
    collected = registry.collect()
    assert (collected.objects, len(collected.problems)) == (1, 1)
    assert "is a link" in collected.problems[0]
    assert precious.read_text() == "keep me"


def meanwhile(monkeypatch, act):
    """Something happens after a collection has listed what nothing refers to, before it takes any of that."""
    usual = Store.incoming

    def incoming(store):
        monkeypatch.undo()
        found = usual(store)
        act()
        return found

    monkeypatch.setattr(Store, "incoming", incoming)


def test_what_comes_in_while_a_collection_is_at_work_stays(registry, store, tmp_path, monkeypatch):
    registry.add(make_checkpoint(tmp_path / "old"), name="old")
    new = make_checkpoint(tmp_path / "new", seed=1)
    for path in new.iterdir():  # as a removal left them that was broken off
        put_object(store, hash_file(path).sha256).write_bytes(path.read_bytes())
    meanwhile(monkeypatch, lambda: Registry(registry.path).add(new, name="new"))
    assert registry.collect().objects == 0
    assert registry.verify() == []


def test_what_another_collection_took_is_no_problem(add, registry, store, monkeypatch):
    add()
    put_object(store)
    (store / "incoming" / "new").mkdir(parents=True)
    meanwhile(monkeypatch, lambda: [shutil.rmtree(store / name) for name in ("incoming", "objects/ab")])
    assert registry.collect() == Collected(0, 0, 0, 0, 0)


def test_many_leftovers_are_taken_a_part_at_a_time(add, registry, store, monkeypatch):
    monkeypatch.setattr("lorary.hub.keeping.collection._BATCH", 2)
    add()
    for number in range(5):
        put_object(store, f"ab{number}" + "c" * 61)
    assert registry.collect().objects == 5


def test_files_and_links_among_the_copies_go_too(add, registry, store, tmp_path):
    add()
    (tmp_path / "precious").mkdir()
    (store / "incoming").mkdir()
    (store / "incoming/file").touch()
    (store / "incoming/link").symlink_to(tmp_path / "precious")
    (store / "incoming/astray").symlink_to(tmp_path / "nothing")
    copies = list((store / "incoming").iterdir())
    for path in copies:
        os.utime(path, (time.time() - 2 * DAY,) * 2, follow_symlinks=False)
    size = sum(path.lstat().st_size for path in copies)  # a link's own, not that of what it leads to
    assert registry.collect() == Collected(objects=0, copies=3, bases=0, bytes=size, busy=0)
    assert (tmp_path / "precious").is_dir()


def test_nobody_writes_while_a_collection_deletes(add, registry, store, monkeypatch):
    add()
    put_object(store)
    usual = Store.delete

    def delete(store, sha256):
        with (
            closing(sqlite3.connect(registry.path, timeout=0)) as other,
            pytest.raises(sqlite3.OperationalError, match="locked"),
        ):
            other.execute("BEGIN IMMEDIATE")
        usual(store, sha256)

    monkeypatch.setattr(Store, "delete", delete)
    assert registry.collect().objects == 1


def test_a_dry_run_waits_for_nobody_who_writes(add, registry, store, monkeypatch):
    add()
    put_object(store)
    monkeypatch.setattr("lorary.hub.tables.database._PATIENCE", 0.1)
    with writing(registry.path):
        assert registry.collect(dry_run=True).objects == 1


def test_what_can_t_be_deleted_is_told_and_the_rest_goes(add, registry, store, monkeypatch):
    add()
    stuck, stray = put_object(store), put_object(store, "ef" + "c" * 62)
    copy = store / "incoming" / "old"
    copy.mkdir(parents=True)
    aged(copy, DAY + 60)
    unlink = Path.unlink

    def refuse(path, *arguments, **options):
        if path == stuck:
            raise PermissionError(errno.EACCES, "Permission denied")
        unlink(path, *arguments, **options)

    def refuse_all(path):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr("lorary.hub.keeping.collection.shutil.rmtree", refuse_all)
    collected = registry.collect()
    assert (collected.objects, collected.copies, stray.exists()) == (1, 0, False)
    assert collected.problems == tuple(f"{path}: can't be deleted (Permission denied)" for path in (copy, stuck))


def test_a_collection_does_not_take_anything_from_an_addition(registry, tmp_path, monkeypatch):
    """Another process collects just before the new version's rows are written."""
    registry.add(make_checkpoint(tmp_path / "old"), name="old")
    insert = registry._insert

    def collected_first(*arguments):
        assert Registry(registry.path).collect().busy == 1
        return insert(*arguments)

    monkeypatch.setattr(registry, "_insert", collected_first)
    registry.add(make_checkpoint(tmp_path / "new", seed=1), name="new")
    assert registry.verify() == []


def test_an_addition_that_fails_leaves_nothing(registry, tmp_path, monkeypatch):
    source = make_checkpoint(tmp_path / "a")

    def changed(*arguments):
        raise CheckpointError("changed while it was copied")

    monkeypatch.setattr(registry, "_check_copy", changed)
    before = tree(tmp_path)
    with pytest.raises(CheckpointError):
        registry.add(source, name="a")
    with pytest.raises(UnknownReferenceError, match="no registry"):
        registry.add(source, name="a", parents=["nobody"])
    assert tree(tmp_path) == before
    assert not registry.path.exists()
    assert not registry.path.with_name("registry.store").exists()


def test_two_bases_of_the_same_content_share_a_folder_until_both_are_gone(registry, tmp_path):
    first = add_base(registry, tmp_path / "base")
    facts = {"fingerprint": "e" * 64, "architecture": "bert", "parameters": 7, "metrics": {}, "provenance": {}}
    registry.bases.add(tmp_path / "base", name="other", **facts)
    with pytest.raises(RegistryConflictError):
        registry.bases.add(make_checkpoint(tmp_path / "different"), name="other", **facts)
    registry.bases.remove("tiny")
    assert first.folder.is_dir()
    registry.bases.remove("other")
    assert not first.folder.exists()


def test_a_base_stays_while_another_of_the_same_content_comes(registry, tmp_path, monkeypatch):
    first = add_base(registry, tmp_path / "base")

    def killed(*_):
        raise KeyboardInterrupt

    facts = {"fingerprint": "e" * 64, "architecture": "bert", "parameters": 7, "metrics": {}, "provenance": {}}
    with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
        patched.setattr(Path, "replace", killed)
        registry.bases.add(tmp_path / "base", name="other", **facts)
    assert registry.verify() == []
    (first.folder / "model.safetensors").chmod(0o644)
    (first.folder / "model.safetensors").write_bytes(b"rotten")
    registry.bases.add(tmp_path / "base", name="third", **facts)
    assert registry.verify() == []


def test_a_place_that_is_gone_is_an_error(tmp_path, monkeypatch):
    """A folder that was removed while a shell stood in it takes no other."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(FileNotFoundError), staging_folder(Path("incoming")):
        pass
