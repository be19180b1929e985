import sqlite3

import pytest
import sqlite_utils

from checkpoints import make_checkpoint
from lorary.hub.errors import RegistryError, RegistryVersionError
from lorary.hub.tables import schema


@pytest.fixture
def filled(registry, tmp_path):
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    return registry


def test_the_tables(filled):
    db = sqlite_utils.Database(filled.path)
    catalogue = {"adapters", "versions", "files", "metrics", "aliases", "alias_moves", "tags", "parents", "remotes"}
    index = {name for name in db.table_names() if name.startswith("search_") and name != "search_pending"}
    others = {"bases", "base_files", "search", "search_pending", "_sqlite_migrations"}
    assert set(db.table_names()) - index == catalogue | others
    assert db.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    assert db.journal_mode == "delete"
    assert ["domain", "task"] in [index.columns for index in db["adapters"].indexes]
    known = {name: value for name, value in next(db["bases"].rows).items() if value is not None}
    assert known == {"fingerprint": filled.resolve("a").base_fingerprint, "id": "org/tiny", "commit": "c" * 40}
    db.close()


@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('lorary', 'm999_future', '')",
        "PRAGMA user_version = 999",
    ],
)
@pytest.mark.parametrize("writes", [False, True])
def test_a_newer_registry_is_left_alone(filled, tmp_path, change, writes):
    connection = sqlite3.connect(filled.path)
    connection.execute(change)
    connection.commit()
    connection.close()
    before = filled.path.read_bytes()
    with pytest.raises(RegistryVersionError, match=r"999.*upgrade lorary"):
        filled.add(make_checkpoint(tmp_path / "b", seed=1), name="b") if writes else filled.versions()
    assert filled.path.read_bytes() == before


def test_an_older_registry_is_brought_up_to_date_by_whoever_opens_it(filled, monkeypatch):
    def add_notes(db):
        db.execute("CREATE TABLE notes (text TEXT)")

    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("m999_notes", add_notes)))
    assert [version.name for version in filled.versions()] == ["a"]
    db = sqlite_utils.Database(filled.path)
    assert "notes" in db.table_names()
    assert db.execute("PRAGMA user_version").fetchone()[0] == len(schema.MIGRATIONS)
    db.close()


def test_a_migration_that_fails_changes_nothing(filled, monkeypatch):
    def half(db):
        db.execute("CREATE TABLE half (text TEXT)")
        raise RuntimeError("power cut")

    before = filled.path.read_bytes()
    monkeypatch.setattr(schema, "MIGRATIONS", (*schema.MIGRATIONS, ("m999_half", half)))
    with pytest.raises(RuntimeError):
        filled.versions()
    assert filled.path.read_bytes() == before


@pytest.mark.parametrize("writes", [False, True])
def test_somebody_elses_database_is_left_alone(registry, tmp_path, writes):
    connection = sqlite3.connect(registry.path)
    connection.execute("CREATE TABLE customers (name TEXT)")
    connection.commit()
    connection.close()
    before = registry.path.read_bytes()
    with pytest.raises(RegistryError, match="not a lorary registry"):
        registry.add(make_checkpoint(tmp_path / "a"), name="a") if writes else registry.versions()
    assert registry.path.read_bytes() == before


@pytest.mark.parametrize("writes", [False, True])
@pytest.mark.parametrize("content", [b"not SQLite " * 100, b"x"])
def test_what_is_no_database_is_left_alone(registry, tmp_path, content, writes):
    registry.path.write_bytes(content)
    with pytest.raises(RegistryError, match="isn't a SQLite file"):
        registry.add(make_checkpoint(tmp_path / "a"), name="a") if writes else registry.versions()
    assert registry.path.read_bytes() == content


def test_an_empty_file_is_an_empty_registry(registry, tmp_path):
    registry.path.touch()
    assert registry.versions() == []
    assert registry.verify() == []
    assert registry.add(make_checkpoint(tmp_path / "a"), name="a").number == 1


def test_a_truncated_database_is_named(filled):
    filled.path.write_bytes(filled.path.read_bytes()[:8192])
    with pytest.raises(RegistryError, match=r"registry\.db: can't be used .*malformed"):
        filled.versions()
