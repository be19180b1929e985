"""The store: its files are on the disk before a row refers to them, stay as they are, and are files of its own."""

import os
import sqlite3
from contextlib import closing

import pytest

from checkpoints import make_checkpoint
from lorary.hub.errors import UnsafeFileError
from lorary.hub.files.store import copy_file
from lorary.hub.tables import database
from lorary.hub.values import Collected


def add_base(registry, source, name="tiny"):
    source.mkdir(exist_ok=True)
    (source / "model.safetensors").write_bytes(b"weights")
    facts = {"fingerprint": "f" * 64, "architecture": "bert", "parameters": 7, "metrics": {}, "provenance": {}}
    return registry.bases.add(source, name=name, **facts)


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
    base = add_base(registry, tmp_path.parent / f"{tmp_path.name}-source")
    assert (base.folder / "model.safetensors").is_file()
    assert lacking(registry.path.parent, on_the_disk) == []


def test_what_is_in_the_store_is_read_only(registry, tmp_path):
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    assert {path.stat().st_mode & 0o222 for path in tmp_path.glob("registry.store/objects/*/*")} == {0}


def test_a_copy_takes_no_file_s_place(tmp_path):
    (tmp_path / "new").write_text("new")
    (tmp_path / "old").write_text("old")
    with pytest.raises(FileExistsError):
        copy_file(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old").read_text() == "old"


def test_what_is_gone_already_is_no_error(registry):
    registry._store.delete("0" * 64)
    registry._store.delete_folder("0" * 64)


def test_somebody_else_s_files_are_left_alone(registry, tmp_path):
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    add_base(registry, tmp_path / "base")
    notes = [tmp_path / "registry.store" / place for place in ("objects/ab/notes", "bases/notes")]
    for path in notes:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    assert registry.verify() == []
    assert registry.collect() == Collected(0, 0, 0, 0, 0)
    assert all(path.read_text() == "mine" for path in notes)


def test_a_link_in_the_place_of_a_base_is_refused(registry, tmp_path):
    base = add_base(registry, tmp_path / "base")
    base.folder.rename(tmp_path / "elsewhere")
    base.folder.symlink_to(tmp_path / "elsewhere")
    for use in (lambda: registry.bases.get("tiny"), lambda: add_base(registry, tmp_path / "base", "other")):
        with pytest.raises(UnsafeFileError, match="is a link; the store holds files only"):
            use()


def test_a_base_s_row_that_leads_out_of_the_store_is_refused(registry, tmp_path):
    add_base(registry, tmp_path / "base")
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        connection.execute("UPDATE bases SET digest = '../../precious'")
    (tmp_path / "precious").mkdir()
    with pytest.raises(UnsafeFileError, match="isn't a sha256"):
        registry.bases.get("tiny")
    assert "isn't a sha256" in registry.bases.remove("tiny").problem
    assert (tmp_path / "precious").is_dir()


@pytest.mark.parametrize("damage", ["a link", "a folder", "another file"])
def test_adding_a_base_again_mends_what_was_put_into_its_folder(registry, tmp_path, damage):
    folder = add_base(registry, tmp_path / "base").folder
    weights = folder / "model.safetensors"
    if damage == "a link":
        weights.rename(tmp_path / "elsewhere")
        weights.symlink_to(tmp_path / "elsewhere")
    elif damage == "a folder":
        (folder / "more").mkdir()
    else:
        (folder / "more").touch()
    add_base(registry, tmp_path / "base", "other")
    assert list(folder.iterdir()) == [weights]
    assert not weights.is_symlink()
