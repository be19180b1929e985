"""Commands that messages suggest name the registry where they would mean another one without."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.registry import Registry
from lorary.hub.registry_path import suggested


@pytest.mark.parametrize("name", ["own.db", "the team's/our registry.db", "-x.db", "~ann/own.db", "a$HOME`ls`.db"])
def test_a_registry_of_another_name_is_named_so_that_a_shell_reads_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, option, path = shlex.split(suggested("lorary list", tmp_path / name))[-3:]
    assert (command, option) == ("list", "--registry")
    assert Registry(path).path == tmp_path / name
    assert not path.startswith("-")


def test_a_registry_is_named_where_none_is_meant_without(tmp_path, monkeypatch):
    monkeypatch.setenv("LORARY_REGISTRY", "~nobody-of-that-name/registry.db")
    assert suggested("lorary list", tmp_path / "own.db") == f"lorary list --registry {tmp_path / 'own.db'}"
    monkeypatch.delenv("LORARY_REGISTRY")
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert suggested("lorary list", tmp_path / "own.db") == f"lorary list --registry {tmp_path / 'own.db'}"


def test_what_a_command_does_not_find_is_looked_for_in_the_same_registry(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    registry = Registry("own.db")
    registry.add(make_checkpoint(tmp_path / "x"), name="tone")
    place = ["--registry", "own.db"]
    assert main(["show", "unheard", *place]) == 1
    assert "; `lorary list --registry own.db` shows what there is" in capsys.readouterr().err
    assert main(["list", "--domain", "unheard", *place]) == 0
    assert "fits; `lorary domains --registry own.db` shows what there is." in capsys.readouterr().out
    (registry.path.with_name("own.store") / "objects" / "00").mkdir(parents=True, exist_ok=True)
    (registry.path.with_name("own.store") / "objects" / "00" / ("0" * 62)).write_text("left")
    assert main(["verify", *place]) == 0
    assert "`lorary gc --registry own.db` deletes those" in capsys.readouterr().out


def test_the_one_that_is_meant_anyway_is_not_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORARY_REGISTRY", "team.db")
    assert suggested("lorary list", tmp_path / "team.db") == "lorary list"
    assert suggested("lorary list", tmp_path / "registry.db") == "lorary list --registry registry.db"
    monkeypatch.delenv("LORARY_REGISTRY")
    assert suggested("lorary list", tmp_path / "registry.db") == "lorary list"
    assert suggested("lorary list", Path("/mnt/registry.db")) == "lorary list --registry /mnt/registry.db"
