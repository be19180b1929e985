"""Reading leaves no trace; writing that fails says why and changes nothing."""

import errno
import hashlib
import os
import resource
import shutil
import signal
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest
from privileges import unprivileged

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.errors import LoraryError, RegistryError, UnknownReferenceError
from lorary.hub.tables import database
from lorary.hub.tables.database import reading, writing

READS = {
    "versions": lambda registry: registry.versions(),
    "find": lambda registry: registry.find(text="finance"),
    "resolve": lambda registry: registry.resolve("a@prod"),
    "checkpoint": lambda registry: registry.checkpoint("a").digest,
    "best": lambda registry: registry.best(metric="f1"),
    "verify": lambda registry: registry.verify(),
    "unknown": lambda registry: unknown(registry),
}


def unknown(registry):
    with pytest.raises(UnknownReferenceError):
        registry.resolve("b")


@pytest.fixture
def filled(tmp_path):
    registry = Registry(tmp_path / "home/registry.db")
    registry.add(make_checkpoint(tmp_path / "a"), name="a", metrics={"test": {"f1": 0.5}})
    registry.alias("a", "prod", 1)
    return registry


def traces(folder):
    """Each file below a folder: its content, and when it and its folder were last changed."""
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None)
        for path in [folder, *sorted(folder.rglob("*"))]
    }


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_leaves_no_trace(filled, read):
    before = traces(filled.path.parent)
    read(filled)
    assert traces(filled.path.parent) == before


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_reading_a_registry_in_wal_mode_leaves_no_trace(filled, read):
    connection = sqlite3.connect(filled.path)
    connection.execute("PRAGMA journal_mode = wal")
    connection.close()
    before = traces(filled.path.parent)
    read(filled)
    assert traces(filled.path.parent) == before


def test_reading_sees_what_a_wal_holds(filled):
    other = sqlite3.connect(filled.path)
    other.execute("PRAGMA journal_mode = wal")
    other.execute("INSERT INTO tags VALUES (1, 'only-in-the-log')")
    other.commit()
    assert Path(f"{filled.path}-wal").stat().st_size
    assert filled.resolve("a").tags == ("only-in-the-log",)
    filled.tag("a", "written-beside-it")
    other.close()
    assert len(filled.resolve("a").tags) == 2


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_reading_needs_no_writable_folder(open_folder, tmp_path, mode):
    registry = Registry(open_folder / "registry.db")
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    connection = sqlite3.connect(registry.path)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.close()
    registry.path.chmod(0o444)
    open_folder.chmod(0o555)
    assert unprivileged(lambda: [registry.resolve("a").reference, *registry.verify()]) == "['a@1']"
    assert "RegistryError" in unprivileged(lambda: registry.tag("a", "x"))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks to drop its privileges")
def test_writing_into_a_read_only_place_says_so(open_folder, tmp_path):
    checkpoint = make_checkpoint(open_folder / "checkpoint")
    (open_folder / "home").mkdir()
    registry = Registry(open_folder / "home/registry.db")
    registry.add(make_checkpoint(tmp_path / "a", seed=1), name="a")
    registry.path.chmod(0o444)
    (open_folder / "home").chmod(0o555)
    before = traces(open_folder)
    assert "registry.db: can't be written" in unprivileged(lambda: registry.add(checkpoint, name="b"))
    new = Registry(open_folder / "home/new.db")
    assert "new.db: can't be written" in unprivileged(lambda: new.add(checkpoint, name="b"))
    assert traces(open_folder) == before


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks to drop its privileges")
def test_a_folder_that_may_be_written_and_not_be_listed(open_folder):
    checkpoint = make_checkpoint(open_folder / "checkpoint")
    (open_folder / "home").mkdir()
    (open_folder / "home").chmod(0o333)
    registry = Registry(open_folder / "home/registry.db")
    assert unprivileged(lambda: registry.add(checkpoint, name="a").reference) == "a@1"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.ENOSYS])
def test_a_file_system_that_syncs_no_folders(registry, tmp_path, monkeypatch, number):
    usual = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        usual(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    assert registry.verify() == []


def test_a_folder_that_the_disk_doesnt_take_is_an_error(registry, tmp_path, monkeypatch):
    usual = os.fsync

    def fsync(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EIO, "Input/output error")
        usual(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(RegistryError, match="Input/output error"):
        registry.add(make_checkpoint(tmp_path / "a"), name="a")
    assert registry.versions() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks to drop its privileges")
def test_a_store_that_cant_be_read_is_named(open_folder, tmp_path):
    registry = Registry(open_folder / "registry.db")
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    store = open_folder / "registry.store"
    for folder in (store, store / "objects"):
        folder.chmod(0o700 if os.getuid() == 0 else 0)
        for use in (registry.verify, lambda: registry.checkpoint("a"), lambda: registry.collect(dry_run=True)):
            told = unprivileged(lambda use=use: _told(use))
            problem = "registry.store: can't be read (Permission denied); check its permissions"
            assert told == f"RegistryError: {open_folder}/{problem}"
        folder.chmod(0o755)


def _told(use):
    try:
        return use()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


@pytest.mark.parametrize("read", ["versions", "find", "verify"])
def test_a_missing_registry_is_empty_and_stays_missing(registry, tmp_path, read):
    assert READS[read](registry) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "action",
    [
        lambda registry: registry.resolve("a"),
        lambda registry: registry.checkpoint("a"),
        lambda registry: registry.best(metric="f1"),
        lambda registry: registry.verify("a"),
        lambda registry: registry.alias("a", "prod", 1),
        lambda registry: registry.unalias("a", "prod"),
        lambda registry: registry.tag("a", "x"),
        lambda registry: registry.remove("a"),
        lambda registry: registry.add("nowhere", name="a"),
    ],
)
def test_what_fails_on_a_missing_registry_makes_none(registry, tmp_path, action):
    with pytest.raises(LoraryError):
        action(registry)
    assert list(tmp_path.iterdir()) == []


def test_odd_signs_in_the_path(tmp_path):
    registry = Registry(tmp_path / "what? a #1 100%25 name.db")
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    assert registry.verify() == []
    assert registry.path.is_file()


def test_a_reader_undoes_what_a_killed_writer_left(filled):
    """A kill in the middle of a commit leaves a hot journal, which a read-only connection can't roll back."""
    writer = sqlite3.connect(filled.path, isolation_level=None)
    writer.execute("PRAGMA cache_size = 1")  # so that pages are written before the commit
    writer.execute("BEGIN IMMEDIATE")
    writer.executemany("INSERT INTO tags VALUES (1, ?)", [(f"{number:0200}",) for number in range(2000)])
    crashed = Registry(filled.path.with_name("crashed.db"))
    for suffix in ("", "-journal"):
        shutil.copyfile(f"{filled.path}{suffix}", f"{crashed.path}{suffix}")
    shutil.copytree(filled.path.with_name("registry.store"), crashed.path.with_name("crashed.store"))
    writer.execute("ROLLBACK")
    writer.close()
    assert crashed.path.stat().st_size > 100_000
    assert crashed.verify() == []
    assert crashed.versions() == filled.versions()


def under_limit(limit, action):
    """Run ``action`` where no file can grow beyond ``limit`` bytes, which fails much as a full disk does."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(RegistryError) as caught:
            action()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    return str(caught.value)


def test_no_space_for_the_files(filled, tmp_path):
    source = make_checkpoint(tmp_path / "b", seed=1)
    (source / "README.md").write_text("x" * 1_000_000)
    before = filled.versions()
    objects = sorted(filled.path.parent.rglob("objects/*/*"))
    assert "no space left for README.md" in under_limit(500_000, lambda: filled.add(source, name="b"))
    assert filled.versions() == before
    assert sorted(filled.path.parent.rglob("objects/*/*")) == objects
    assert filled.verify() == []
    assert filled.add(source, name="b").number == 1


def test_no_space_for_the_rows(filled):
    before = traces(filled.path.parent)
    message = under_limit(filled.path.stat().st_size, lambda: filled.tag("a", *(f"{n:096}" for n in range(2000))))
    assert "registry.db" in message
    assert {
        **traces(filled.path.parent),
        **{key: value for key, value in before.items() if "store" not in key},
    } == before
    assert filled.resolve("a").tags == ()
    assert filled.verify() == []


def test_sqlites_own_word_for_a_full_disk(filled):
    def overfill():
        with writing(filled.path) as db:
            db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
            db.execute("CREATE TABLE too_much AS SELECT zeroblob(1000000)")

    with pytest.raises(RegistryError, match="no space left on the disk"):
        overfill()
    assert filled.verify() == []


def test_a_write_keeps_others_out_from_its_beginning_and_is_on_the_disk_at_its_end(filled):
    with writing(filled.path) as db, closing(sqlite3.connect(filled.path, timeout=0)) as other:
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        assert db.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA; what it does shows in a power cut alone


def test_a_busy_registry_is_told(filled, monkeypatch):
    monkeypatch.setattr("lorary.hub.tables.database._PATIENCE", 0.01)
    with closing(sqlite3.connect(filled.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryError, match="kept busy by another process"):
            filled.tag("a", "b")


def test_what_is_read_stays_as_it_was_at_the_first_look(filled):
    with closing(sqlite3.connect(filled.path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = wal")  # else a writer would wait
        other.execute("INSERT INTO tags VALUES (1, 'before')")
        with reading(filled.path) as db:
            other.execute("INSERT INTO tags VALUES (1, 'meanwhile')")
            assert db.execute("SELECT tag FROM tags").fetchall() == [("before",)]
        assert filled.resolve("a").tags == ("before", "meanwhile")


def in_wal_mode(registry):
    with closing(sqlite3.connect(registry.path)) as connection:
        connection.execute("PRAGMA journal_mode = wal")


def tag_anew(path):
    """Another process's write, by which the file itself changes as it ends."""
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN")
        other.execute("DELETE FROM tags")
        other.executemany("INSERT INTO tags VALUES (1, ?)", [[f"new-{number}"] for number in range(1000)])
        other.execute("COMMIT")


def test_what_is_read_without_a_log_stays_too(filled):
    filled.tag("a", *(f"old-{number}" for number in range(200)))
    in_wal_mode(filled)
    with reading(filled.path) as db:
        tags = filled.resolve("a").tags
        tag_anew(filled.path)
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert tuple(tag for (tag,) in db.execute("SELECT tag FROM tags ORDER BY tag")) == tags
    assert len(filled.resolve("a").tags) == 1000


@pytest.mark.parametrize("times", [1, 3, None])
def test_what_changes_while_it_is_copied_is_copied_anew(filled, monkeypatch, times):
    """A write may begin and end between the first and the last byte."""
    in_wal_mode(filled)
    usual, looks = database.change_stamp, []

    def stamp(path):
        looks.append(path)
        if len(looks) % 2 == 0 and (times is None or len(looks) <= 2 * times):
            tag_anew(path)
        return usual(path)

    monkeypatch.setattr(database, "change_stamp", stamp)
    if times is None:
        monkeypatch.setattr(database, "_PATIENCE", 0.1)
        with pytest.raises(RegistryError, match="kept busy by another process"):
            filled.resolve("a")
        return
    assert len(filled.resolve("a").tags) == 1000
    assert len(looks) == 2 * times + 2


def test_the_stamp_tells_of_a_write_to_a_log_and_of_another_file_in_the_place(filled):
    before = filled.stamp()
    assert filled.stamp() == before
    shutil.copy2(filled.path, filled.path.with_name("copy"))
    filled.path.with_name("copy").replace(filled.path)
    replaced = filled.stamp()
    assert replaced != before
    with closing(sqlite3.connect(filled.path, isolation_level=None)) as other:
        other.execute("PRAGMA journal_mode = wal")
        stamps = {replaced}
        for tag in "ab":
            other.execute("INSERT INTO tags VALUES (1, ?)", [tag])
            stamps.add(filled.stamp())
    assert len(stamps) == 3


@pytest.mark.parametrize("use", [reading, writing])
def test_a_view_of_somebody_else_s_calls_nothing(filled, use):
    with closing(sqlite3.connect(filled.path)) as other:
        other.execute("CREATE VIEW trap AS SELECT spring()")
    with use(filled.path) as db:
        db.conn.create_function("spring", 0, lambda: "sprung")
        with pytest.raises(sqlite3.OperationalError, match="unsafe use of spring"):
            db.execute("SELECT * FROM trap")


def test_an_exception_undoes_the_transaction(filled):
    def interrupted():
        with writing(filled.path) as db:
            db.execute("DELETE FROM aliases")
            raise KeyboardInterrupt

    before = filled.path.read_bytes()
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert filled.path.read_bytes() == before


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda path: path.mkdir(), "is a folder"),
        (os.mkfifo, "is no ordinary file"),
        (lambda path: path.symlink_to(path.name), "can't be a registry's path .*circle"),
        (lambda path: path.symlink_to("x" * 300), "can't be a registry's path .*too long"),
    ],
)
def test_what_is_no_file_is_told_at_once(tmp_path, make, told, writes):
    make(tmp_path / "registry.db")
    folder = make_checkpoint(tmp_path / "a")

    def use():
        registry = Registry(tmp_path / "registry.db")
        registry.add(folder, name="a") if writes else registry.versions()

    with pytest.raises(RegistryError, match=told):
        use()


@pytest.mark.parametrize("place", ["registry.db", "folder/registry.db"])
def test_a_circle_of_links_is_told_by_every_python(tmp_path, monkeypatch, place):
    # As in Python 3.13 and 3.14: neither of the two tells of a circle there.
    monkeypatch.setattr(Path, "exists", lambda path: os.path.exists(path))  # noqa: PTH110
    monkeypatch.setattr(Path, "resolve", lambda path, strict=False: Path(os.path.realpath(path, strict=strict)))
    link = tmp_path / place.partition("/")[0]
    link.symlink_to(link.name)
    with pytest.raises(RegistryError, match=r"can't be a registry's path \(its links lead in a circle\)"):
        Registry(tmp_path / place)


def test_the_home_folder_of_nobody_is_told():
    with pytest.raises(RegistryError, match=r"~no-such-user/a\.db: no such user's home folder is known"):
        Registry("~no-such-user/a.db")


@pytest.mark.parametrize("names", [("a.db", "a"), ("a", "a.db")])
def test_two_registries_dont_share_a_store(tmp_path, names):
    first, second = (Registry(tmp_path / name) for name in names)
    first.add(make_checkpoint(tmp_path / "one"), name="one")
    with pytest.raises(RegistryError, match=rf"/{names[1]}: would keep its files in a.store, where {names[0]} has"):
        second.add(make_checkpoint(tmp_path / "two", seed=2), name="two")
    assert not second.path.exists()
    (tmp_path / "b").write_text("notes")
    Registry(tmp_path / "b.db").add(tmp_path / "one", name="one")
    with sqlite3.connect(tmp_path / "c") as db:
        db.execute("CREATE TABLE adapters (id)")
    Registry(tmp_path / "c.db").add(tmp_path / "one", name="one")
    assert first.verify() == []


def test_two_registries_that_share_a_store_delete_nothing_of_each_other(tmp_path):
    first, second = Registry(tmp_path / "a.db"), Registry(tmp_path / "b")
    first.add(make_checkpoint(tmp_path / "one"), name="one")
    second.add(make_checkpoint(tmp_path / "two", seed=2), name="two")
    second.path.rename(tmp_path / "a")
    with pytest.raises(RegistryError, match="name it otherwise"):
        Registry(tmp_path / "a").collect()
    assert first.verify() == []
