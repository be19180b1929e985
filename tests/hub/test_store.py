"""Files are on the disk before a row refers to them, and stay as they are."""

import os
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from lorary.hub.tables import database


@pytest.fixture
def on_the_disk(monkeypatch):
    """What had been forced to the disk when a write to the catalogue was about to be committed."""
    synced, before_commit = set(), set()
    fsync, refresh = os.fsync, database.refresh

    def noted(handle):
        synced.add(os.fstat(handle).st_ino)
        fsync(handle)

    def committing(db):
        before_commit.update(synced)
        refresh(db)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(database, "refresh", committing)
    return before_commit


def written_in(home):
    """All that is below a registry's folder, and that folder, but for the catalogue's own files."""
    return [home, *(path for path in home.rglob("*") if not path.name.startswith("registry.db"))]


def lacking(home, synced):
    return [path for path in written_in(home) if path.stat().st_ino not in synced]


def test_a_version_s_files_are_on_the_disk_before_its_rows(registry, tmp_path, on_the_disk):
    source = make_checkpoint(tmp_path.parent / f"{tmp_path.name}-source")
    registry.add(source, name="a")
    assert len(written_in(registry.path.parent)) > 4
    assert lacking(registry.path.parent, on_the_disk) == []


def test_a_base_s_files_are_on_the_disk_before_its_rows(registry, tmp_path, on_the_disk):
    source = tmp_path.parent / f"{tmp_path.name}-source"
    source.mkdir()
    (source / "model.safetensors").write_bytes(b"weights")
    facts = {"fingerprint": "f" * 64, "architecture": "bert", "parameters": 7, "metrics": {}, "provenance": {}}
    base = registry.bases.add(source, name="tiny", **facts)
    assert (base.folder / "model.safetensors").is_file()
    assert lacking(registry.path.parent, on_the_disk) == []


def test_what_is_in_the_store_is_read_only(registry, tmp_path):
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    assert {path.stat().st_mode & 0o222 for path in Path(tmp_path / "registry.store").rglob("objects/*/*")} == {0}
