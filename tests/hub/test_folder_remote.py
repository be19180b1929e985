"""A shared folder as a remote: the same commands, two writers, kills, and what others may put there."""

import errno
import os
import re
import shutil
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.errors import (
    ChangedFilesError,
    CheckpointError,
    RemoteConflictError,
    RemoteError,
    UnknownReferenceError,
    UnsafeFileError,
    UsageError,
)
from lorary.hub.remote import list_remote, pull, push, status, sync


@pytest.fixture
def team(tmp_path):
    """The shared folder, as it is written in commands."""
    (tmp_path / "team share").mkdir()
    return f"file://{tmp_path}/team%20share"


@pytest.fixture
def place(tmp_path):
    return tmp_path / "team share" / "finance-tone"


@pytest.fixture
def elsewhere(tmp_path):
    return Registry(tmp_path / "elsewhere" / "registry.db")


def test_there_and_back(registry, add, team, place, elsewhere):
    first = add(0, metrics={"test": {"f1": 0.9}}, tags=["news"])
    registry.alias("finance-tone", "prod", 1)
    pushed = push(registry, "finance-tone", team)
    assert (pushed.remote, pushed.number, pushed.commit, pushed.created) == (f"{team}/finance-tone", 1, "v1", True)
    assert pushed.moved == ("v1", "prod")
    second = add(1, parents=["finance-tone@1"], strategy="fine-tune")
    assert push(registry, "finance-tone").number == 2
    pulled = pull(elsewhere, f"{team}/finance-tone@prod")
    assert (pulled.version.digest, pulled.number, pulled.aliases) == (first.digest, 1, ("prod",))
    assert (pulled.version.metrics, pulled.version.tags) == (first.metrics, ("news",))
    newest = pull(elsewhere, f"{team}/finance-tone").version
    assert (newest.digest, newest.parents) == (second.digest, ("finance-tone@1",))
    assert elsewhere.verify() == []
    assert sorted(path.name for path in place.iterdir()) == ["aliases", "incoming", "lock", "versions"]
    assert list((place / "incoming").iterdir()) == []


def test_the_same_again_and_a_moved_alias(registry, add, team, place):
    add(0)
    push(registry, "finance-tone", team)
    add(1)
    registry.alias("finance-tone", "prod", 2)
    push(registry, "finance-tone", team)
    before = {path: path.stat().st_mtime_ns for path in (place / "versions").rglob("*")}
    registry.alias("finance-tone", "prod", 1)
    (difference,) = status(registry)[0].aliases
    assert (difference.alias, difference.here, difference.there) == ("prod", 1, 2)
    assert push(registry, "finance-tone@1", team).moved == ("prod",)
    assert push(registry, "finance-tone@1", team).moved == ()
    assert (place / "aliases" / "prod").read_text() == "1\n"
    assert {path: path.stat().st_mtime_ns for path in (place / "versions").rglob("*")} == before


def test_status_and_sync(registry, add, team, elsewhere, tmp_path):
    add(0)
    push(registry, "finance-tone", team)
    pull(elsewhere, f"{team}/finance-tone")
    add(1)
    add(2)
    assert [(one.name, one.relation, one.ahead) for one in status(registry)] == [("finance-tone", "ahead", (2, 3))]
    (done,) = sync(registry)
    assert [pushed.number for pushed in done.pushed] == [2, 3]
    (behind,) = status(elsewhere, "finance-tone")
    assert (behind.relation, behind.behind) == ("behind", (2, 3))
    (done,) = sync(elsewhere)
    assert [pulled.version.reference for pulled in done.pulled] == ["finance-tone@2", "finance-tone@3"]
    assert status(elsewhere)[0].relation == status(registry)[0].relation == "same"
    assert sync(elsewhere)[0].settled


def test_diverged_is_told_and_left_alone(registry, add, team, place, elsewhere, tmp_path):
    add(0)
    push(registry, "finance-tone", team)
    pull(elsewhere, f"{team}/finance-tone")
    elsewhere.add(make_checkpoint(tmp_path / "theirs", seed=7), name="finance-tone")
    push(elsewhere, "finance-tone")
    add(1)
    (before,) = status(registry)
    assert (before.relation, before.ahead, before.behind) == ("diverged", (2,), (2,))
    (done,) = sync(registry)
    assert (done.settled, done.pulled, done.pushed) == (False, (), ())
    with pytest.raises(RemoteConflictError, match="holds v2, which this registry lacks"):
        push(registry, "finance-tone")
    pull(registry, f"{team}/finance-tone")
    assert push(registry, "finance-tone@2").number == 3
    assert sorted(path.name for path in (place / "versions").iterdir()) == ["1", "2", "3"]
    assert [one.relation for one in status(registry)] == ["same"]


def test_one_remote_that_is_gone_stops_no_other(registry, add, team, place, tmp_path):
    add(0)
    add(1, name="tone")
    (tmp_path / "more").mkdir()
    push(registry, "finance-tone", f"file://{tmp_path}/more")
    push(registry, "tone", team)
    shutil.rmtree(tmp_path / "more")
    add(2, name="tone")
    assert [one.relation for one in status(registry)] == ["unknown", "ahead"]
    gone, done = sync(registry)
    assert "is it mounted?" in gone.problem
    assert [pushed.number for pushed in done.pushed] == [2]
    shutil.rmtree(place.parent / "tone")
    assert status(registry, "tone")[0].relation == "missing"


def test_sync_s_hints_lead_on(registry, add, team, place, elsewhere, tmp_path, capsys):
    add(0)
    push(registry, "finance-tone", team)
    pull(elsewhere, f"{team}/finance-tone", name="mine")
    add(1)
    push(registry, "finance-tone")
    elsewhere.add(make_checkpoint(tmp_path / "mine", seed=7), name="mine")
    where = ["--registry", str(elsewhere.path)]
    assert main(["sync", *where]) == 1
    hints = re.findall(r"`lorary ([^`]+)`", capsys.readouterr().out)
    named = f"--registry {elsewhere.path}"
    assert hints == [f"pull {team}/finance-tone --name mine {named}", f"push mine@2 {named}"]
    assert [main(hint.split()) for hint in hints] == [0, 0]
    assert [one.relation for one in status(elsewhere)] == ["same"]
    shutil.rmtree(place)
    capsys.readouterr()
    assert main(["sync", *where]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert f"is it mounted? If it was deleted on purpose, make the folder {place}, then `lorary push mine" in line
    hint = line.split("`")[1].removeprefix("lorary ").split()
    assert main(hint) == 1
    place.mkdir()
    assert main(hint) == 0


def test_list(registry, add, team, tmp_path):
    add(0)
    add(1, name="tone")
    for name in ("finance-tone", "tone"):
        push(registry, name, team)
    (tmp_path / "team share" / "notes").mkdir()
    found, more = list_remote(team, domain="Finance", task="text-classification", base="org/tiny")
    assert [row.address for row in found] == [f"{team}/finance-tone", f"{team}/tone"]
    assert more is False
    assert list_remote(team, limit=1)[1] is True
    assert list_remote(team, domain="legal") == ([], False)
    with pytest.raises(RemoteError, match="is it mounted"):
        list_remote(f"{team}/none")


def test_one_that_is_damaged_or_private_hides_no_others(registry, add, team, place, caplog, monkeypatch):
    add(0)
    for name in ("a-private", "b-damaged"):
        add(1, name=name)
    for name in ("a-private", "b-damaged", "finance-tone"):
        push(registry, name, team)
    (place.parent / "b-damaged" / "versions" / "1" / "lorary-version.json").write_text("")
    real = Path.iterdir

    def refusing(self):  # whoever runs the tests may be root, whom no permission stops
        if "a-private" in self.parts:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "iterdir", refusing)
    assert [row.address for row in list_remote(team)[0]] == [f"{team}/finance-tone"]
    private, damaged = [record.getMessage() for record in caplog.records]
    assert ("a-private" in private, "Permission denied" in private) == (True, True)
    assert ("b-damaged@v1" in damaged, "left out of the list" in damaged) == (True, True)


def test_a_share_that_is_not_mounted_any_more(registry, add, team, place):
    """Its mount point is an empty folder then: what is written there is on nobody's share."""
    add(0)
    push(registry, "finance-tone", team)
    place.rename(place.with_name("elsewhere"))
    add(1)
    with pytest.raises(RemoteError, match="held finance-tone before and is gone; is it mounted"):
        push(registry, "finance-tone")
    assert not place.exists()
    place.mkdir()
    assert push(registry, "finance-tone").created
    shutil.rmtree(place.parent)
    for call in (lambda: push(registry, "finance-tone"), lambda: pull(registry, f"{team}/finance-tone")):
        with pytest.raises(RemoteError, match="is it mounted"):
            call()


def test_what_a_storage_server_puts_into_every_folder_is_passed_over(registry, add, team, place, elsewhere):
    add(0, aliases=["prod"])
    push(registry, "finance-tone", team)
    for folder in [place.parent, *(path for path in place.rglob("*") if path.is_dir())]:
        (folder / "@eaDir").mkdir()
        (folder / "@eaDir" / "x@SynoEAStream").write_bytes(b"x")
        (folder / ".DS_Store").write_bytes(b"\0" * 6148)
    assert status(registry)[0].relation == "same"
    assert pull(elsewhere, f"{team}/finance-tone@prod").aliases == ("prod",)
    add(1)
    assert push(registry, "finance-tone@2").number == 2
    assert [row.address for row in list_remote(team)[0]] == [f"{team}/finance-tone"]


def test_an_adapter_called_versions(registry, add, team, place, elsewhere):
    add(0, name="versions")
    add(1)
    for name in ("versions", "finance-tone", "versions"):
        push(registry, name, team)
    assert [row.address for row in list_remote(team)[0]] == [f"{team}/finance-tone", f"{team}/versions"]
    assert pull(elsewhere, f"{team}/versions").version.name == "versions"


# Two writers, kills, full disks


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_three_writers_at_once_lose_nothing(registry, team, place, tmp_path):
    children = [os.fork() or os._exit(_push_until_it_is_there(tmp_path / str(seed), seed, team)) for seed in range(3)]
    assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0, 0, 0]
    assert sorted(path.name for path in (place / "versions").iterdir()) == ["1", "2", "3"]
    assert list((place / "incoming").iterdir()) == []
    pulled = [pull(registry, f"{team}/finance-tone@{number}").version for number in (1, 2, 3)]
    assert len({version.digest for version in pulled}) == 3


def _push_until_it_is_there(folder, seed, team):
    """Exit code 0 when it is; whoever comes second pulls what is new and tries again."""
    try:
        registry = Registry(folder / "registry.db")
        mine = registry.add(make_checkpoint(folder / "checkpoint", seed=seed), name="finance-tone")
        for _ in range(20):
            try:
                push(registry, mine.reference, team)
                return 0
            except RemoteConflictError:
                pull(registry, f"{team}/finance-tone", name="finance-tone")
    except BaseException:
        return 2
    return 1


def test_somebody_elses_version_between_the_look_and_the_rename(registry, add, team, place, elsewhere, monkeypatch):
    from lorary.hub.remote import folder

    add(0)
    push(registry, "finance-tone", team)
    pull(elsewhere, f"{team}/finance-tone")
    elsewhere.add(add_theirs(place), name="finance-tone")
    add(1)
    real = folder.sync_folder

    def quicker(path):
        monkeypatch.setattr(folder, "sync_folder", real)
        push(elsewhere, "finance-tone")
        real(path)

    monkeypatch.setattr(folder, "sync_folder", quicker)
    with pytest.raises(RemoteConflictError, match="somebody else pushed a version at the same time"):
        push(registry, "finance-tone")
    assert sorted(path.name for path in (place / "versions").iterdir()) == ["1", "2"]
    assert pull(registry, f"{team}/finance-tone").version.digest == elsewhere.resolve("finance-tone").digest
    assert list((place / "incoming").iterdir()) == []


def add_theirs(place):
    return make_checkpoint(place.parent.parent / "theirs", seed=7)


def test_without_locks_the_rename_decides(registry, add, team, place, monkeypatch):
    import fcntl

    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    add(0)
    push(registry, "finance-tone", team)
    add(1)
    from lorary.hub.remote.folder import SharedFolder

    monkeypatch.setattr(SharedFolder, "_numbers", lambda self: [1])
    (place / "versions" / "2").mkdir()
    (place / "versions" / "2" / "theirs").write_text("")
    with pytest.raises(RemoteConflictError):
        push(registry, "finance-tone", team)
    assert [path.name for path in (place / "versions" / "2").iterdir()] == ["theirs"]


def test_a_full_disk_changes_nothing(registry, add, team, place, monkeypatch):
    from lorary.hub.remote import folder

    add(0)
    push(registry, "finance-tone", team)
    add(1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "copy_file", full)
    with pytest.raises(RemoteError, match="no space left there"):
        push(registry, "finance-tone")
    assert [path.name for path in (place / "versions").iterdir()] == ["1"]
    assert list((place / "incoming").iterdir()) == []


def test_what_a_kill_left_is_cleared_later(registry, add, team, place):
    add(0)
    push(registry, "finance-tone", team)
    for name, age in (("old", 3 * 86400), ("new", 60)):
        left = place / "incoming" / name
        left.mkdir()
        (left / "half").write_text("")
        when = left.stat().st_mtime - age
        os.utime(left, (when, when))
    add(1)
    push(registry, "finance-tone")
    assert [path.name for path in (place / "incoming").iterdir()] == ["new"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written(registry, add, team, tmp_path):
    add(0)
    (tmp_path / "team share").chmod(0o555)
    with pytest.raises(RemoteError, match="check the path and its permissions"):
        push(registry, "finance-tone", team)


# What others may put there


def test_links_are_refused(registry, add, team, place, elsewhere, tmp_path):
    add(0)
    push(registry, "finance-tone", team)
    version = place / "versions" / "1"
    secret = tmp_path / "secret"
    secret.write_text("mine")
    for name in ("README.md", "lorary-version.json"):
        kept = (version / name).read_bytes()
        (version / name).unlink()
        (version / name).symlink_to(secret)
        with pytest.raises(UnsafeFileError, match="is a link or a device"):
            pull(elsewhere, f"{team}/finance-tone")
        (version / name).unlink()
        (version / name).write_bytes(kept)
    os.mkfifo(version / "report.json")
    with pytest.raises(UnsafeFileError, match=r"report\.json is a link or a device"):
        pull(elsewhere, f"{team}/finance-tone")


def test_changed_files_are_refused(registry, add, team, place, elsewhere):
    add(0)
    push(registry, "finance-tone", team)
    weights = place / "versions" / "1" / "adapter_model.safetensors"
    weights.chmod(0o644)
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ChangedFilesError, match="isn't the file that was pushed"):
        pull(elsewhere, f"{team}/finance-tone")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors"):
        pull(elsewhere, f"{team}/finance-tone")


def test_a_renamed_version(registry, add, team, place, elsewhere):
    add(0)
    push(registry, "finance-tone", team)
    (place / "versions" / "1").rename(place / "versions" / "5")
    with pytest.raises(RemoteError, match=r"is version 1's; was the folder renamed\?"):
        pull(elsewhere, f"{team}/finance-tone")


def test_wrong_input(registry, add, team, place, elsewhere):
    add(0)
    for text in ("file://host/share", "file:share", "file:///a/../b", "file:///a?x=1", "file:///a%00b"):
        with pytest.raises(UsageError, match="names no shared folder"):
            push(registry, "finance-tone", text)
    with pytest.raises(RemoteError, match="is it mounted"):
        push(registry, "finance-tone", f"{team}/none/at/all")
    with pytest.raises(UnknownReferenceError, match="holds no version"):
        pull(elsewhere, f"{team}/finance-tone")
    push(registry, "finance-tone", team)
    with pytest.raises(UnknownReferenceError, match=r"holds no version of an adapter; did you mean .*/finance-tone\?"):
        pull(elsewhere, team)
    with pytest.raises(UnknownReferenceError, match="has no 'v9'; it has v1"):
        pull(elsewhere, f"{team}/finance-tone@9")
    with pytest.raises(UnknownReferenceError, match="has no remote yet"):
        status(registry, add(1, name="tone").name)
