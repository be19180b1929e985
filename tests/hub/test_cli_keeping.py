"""The commands that keep, as they are typed: alias, promote, rollback, rm, gc."""

import json

import pytest

from checkpoints import make_checkpoint
from lorary.hub.cli.main import main


@pytest.fixture
def lorary(registry, tmp_path, monkeypatch, capsys):
    """Run a command on a registry of three versions; expects the exit code and gives back what it printed."""
    monkeypatch.setenv("LORARY_REGISTRY", str(registry.path))
    monkeypatch.setenv("LORARY_USER", "ana")
    for seed in (1, 2, 3):
        folder = make_checkpoint(tmp_path / str(seed), seed=seed)
        registry.add(folder, name="tone", metrics={"test": {"f1": 0.8 + seed / 100}})

    def run(*words, code=0):
        assert main(words) == code
        printed = capsys.readouterr()
        assert (printed.err == "") is (code == 0)
        return printed.out if code == 0 else printed.err

    return run


def test_aliases_and_their_history_are_shown(lorary):
    assert "tone has no aliases" in lorary("alias", "tone")
    assert "no alias of tone has moved yet" in lorary("alias", "tone", "--history")
    lorary("alias", "tone", "prod", "1", "--why", "[red]first[/red] <b>one</b>")
    assert lorary("alias", "tone", "prod", "1") == "tone@prod is version 1 already\n"
    lorary("alias", "tone@3", "candidate")
    shown = [line.split() for line in lorary("alias", "tone").splitlines()]
    assert [line[:2] for line in shown] == [["alias", "version"], ["candidate", "3"], ["prod", "1"]]
    assert shown[2][3:] == ["ana", "[red]first[/red]", "<b>one</b>"]  # markup is text
    (held, _) = json.loads(lorary("alias", "tone", "--json"))
    assert (held["alias"], held["version"], held["why"]) == ("candidate", 3, None)
    assert len(lorary("alias", "tone", "--history").splitlines()) == 3
    (move,) = json.loads(lorary("alias", "tone", "prod", "--history", "--json"))
    assert (move["from_number"], move["to_number"], move["who"], move["undoes"]) == (None, 1, "ana", None)


def test_import_writes_history_too(lorary, tmp_path):
    lorary("import", str(make_checkpoint(tmp_path / "new", seed=9)), "--name", "tone", "--alias", "fresh")
    (move,) = json.loads(lorary("alias", "tone", "fresh", "--history", "--json"))
    assert (move["alias"], move["to_number"]) == ("fresh", 4)


def test_promote_and_rollback(lorary):
    out = lorary("promote", "tone@1", "--to", "prod", "--require", "f1>=prod", "--require", "verify")
    assert out.splitlines() == [
        "f1>=prod: holds, since nothing is prod yet",
        "verify: every file is what was registered",
        "tone@prod is now version 1; it was nothing",
    ]
    assert "would become version 3; it was version 1" in lorary("promote", "tone@3", "--to", "prod", "--dry-run")
    lorary("promote", "tone@3", "--to", "prod", "--require", "f1>prod+0.01")
    told = lorary("promote", "tone@2", "--to", "prod", "--require", "f1>=prod", "--require", "bleu>=1", code=1)
    assert told.splitlines() == [
        "lorary: error: tone@2 is not promoted to prod: 2 problems",
        "  - f1>=prod: tone@2 has 0.82, tone@3 has 0.83",
        "  - bleu>=1: tone@2 has no bleu; it has f1",
    ]
    assert lorary("rollback", "tone", "prod", "--why", "slow") == "tone@prod is version 1 again; it was version 3\n"
    assert "meant nothing else before version 1" in lorary("rollback", "tone", "prod", code=1)
    assert "rollback of move 2; slow" in lorary("alias", "tone", "--history")
    promoted = json.loads(lorary("promote", "tone", "--to", "prod", "--require", "f1>0.5", "--json"))
    assert promoted["checks"][0]["met"] is True
    assert (promoted["from_number"], promoted["to_number"]) == (1, 3)
    assert json.loads(lorary("rollback", "tone", "prod", "--json"))["to_number"] == 1


def test_rm_takes_a_reason_and_gc_counts(lorary, registry):
    lorary("alias", "tone", "prod", "2")
    lorary("rm", "tone@2", "--force", "--why", "trained on wrong data")
    assert "trained on wrong data" in lorary("alias", "tone", "--history")
    assert lorary("gc") == "nothing to delete\n"
    stray = registry.path.with_name("registry.store") / "objects/ab" / ("c" * 62)
    stray.parent.mkdir(exist_ok=True)
    stray.write_bytes(b"x" * 2000)
    assert lorary("gc", "--dry-run") == "1 object would be deleted, 2 kB\n"
    assert json.loads(lorary("gc", "--dry-run", "--json"))["dry_run"] is True
    with registry._store.staging():
        assert lorary("gc").splitlines() == ["1 object deleted, 2 kB", "left alone: 1 of commands at work"]
    assert not stray.exists()


def test_gc_tells_what_it_can_not_delete(lorary, registry, tmp_path, capsys):
    link = registry.path.with_name("registry.store") / "objects/ab" / ("c" * 62)
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path)
    assert main(["gc"]) == 1
    assert "not deleted: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("alias", "nobody"), 1, "no adapter named"),
        (("alias", "tone@1"), 2, "expected an alias to change"),
        (("alias", "tone", "--delete"), 2, "expected an alias to change"),
        (("alias", "tone", "prod", "1", "--history"), 2, "expected an alias to change"),
        (("alias", "tone", "prod", "1", "--json"), 2, "goes with showing"),
        (("alias", "tone", "prod", "1", "--why", "a\x1b[2Jb"), 2, "one line of printable text"),
        (("alias", "tone", "<b>", "1"), 2, "can't be an alias"),
        (("promote", "tone@1"), 2, "Missing option '--to'"),
        (("promote", "tone@1", "--to", "prod", "--require", "f1"), 2, "requirement 'f1'"),
        (("promote", "tone@9", "--to", "prod"), 1, "no version 9"),
        (("rollback", "tone", "prod"), 1, "has no history"),
        (("rollback", "tone"), 2, "Missing argument 'ALIAS'"),
        (("gc", "--registry", "elsewhere.db"), 1, "there is no registry"),
    ],
)
def test_wrong_input_is_one_error(lorary, registry, words, code, message):
    before = registry.path.read_bytes()
    (line,) = lorary(*words, code=code).splitlines()
    assert message in line
    assert line.isprintable()
    assert registry.path.read_bytes() == before
