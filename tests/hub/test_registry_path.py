"""Commands that messages suggest name the registry where they would mean another one without."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from lorary.hub.registry import Registry
from lorary.hub.registry_path import suggested


@pytest.mark.parametrize("name", ["own.db", "the team's/our registry.db", "-x.db", "~ann/own.db", "a$HOME`ls`.db"])
def test_a_registry_of_another_name_is_named_so_that_a_shell_reads_it(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command, option, path = shlex.split(suggested("lorary list", tmp_path / name))[-3:]
    assert (command, option) == ("list", "--registry")
    assert Registry(path).path == tmp_path / name
    assert not path.startswith("-")


def test_the_one_that_is_meant_anyway_is_not_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORARY_REGISTRY", "team.db")
    assert suggested("lorary list", tmp_path / "team.db") == "lorary list"
    assert suggested("lorary list", tmp_path / "registry.db") == "lorary list --registry registry.db"
    monkeypatch.delenv("LORARY_REGISTRY")
    assert suggested("lorary list", tmp_path / "registry.db") == "lorary list"
    assert suggested("lorary list", Path("/mnt/registry.db")) == "lorary list --registry /mnt/registry.db"
