"""Registries as earlier versions of lorary left them, brought up to date with all that they hold.

`registries/` has a dump for each schema and the files that they share. The first two were written by the code of their
time, the others each follow from the one before (`tests/helpers/dump_registry.py`).
"""

import os
import shutil
import sqlite3

import pytest
from dump_registry import STORED, migrated, restore

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.errors import RegistryError
from lorary.hub.tables.schema import MIGRATIONS

STEMS = [name.partition("_")[0] for name, _ in MIGRATIONS]
# A new migration may have no dump yet when the tests are collected: the test of the stored files says so.
KNOWN = sorted(path.stem for path in STORED.glob("*.sql"))


@pytest.fixture(params=KNOWN)
def older(request, tmp_path):
    """A registry of each schema with its store; the last is as today's."""
    restore(request.param, tmp_path / "registry.db")
    shutil.copytree(STORED / "store" / "objects", tmp_path / "registry.store" / "objects")
    if request.param != "m001":
        shutil.copytree(STORED / "store" / "bases", tmp_path / "registry.store" / "bases")
    return Registry(tmp_path / "registry.db")


def test_every_schema_has_a_stored_file():
    assert KNOWN == STEMS, "run tests/helpers/dump_registry.py, with rows for what the new migration adds"


@pytest.mark.parametrize("stem", KNOWN)
def test_a_migration_that_was_stored_has_not_been_changed(tmp_path, stem):
    restore(stem, tmp_path / "stored.db")
    migrated(tmp_path / "made.db", KNOWN.index(stem) + 1, "made.db")
    stored, made = (_schema(tmp_path / f"{name}.db") for name in ("stored", "made"))
    assert stored == made


def _schema(path):
    db = sqlite3.connect(path)
    rows = db.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    version = db.execute("PRAGMA user_version").fetchone()
    db.close()
    return {(kind, name): " ".join(sql.split()) if sql else None for kind, name, sql in rows}, version


@pytest.mark.parametrize("stem", KNOWN)
def test_every_stored_table_has_rows(tmp_path, stem):
    restore(stem, tmp_path / "registry.db")
    db = sqlite3.connect(tmp_path / "registry.db")
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
    empty = [name for name in tables if not db.execute(f'SELECT 1 FROM "{name}"').fetchone()]
    db.close()
    assert empty == []


def test_everything_is_still_there(older):
    versions = {version.reference: version for version in older.versions()}
    assert list(versions) == ["finance-tone@1", "finance-tone@2", "foreign@1", "legal-ner@1", "orphan@1"]
    first, second = versions["finance-tone@1"], versions["finance-tone@2"]
    assert (first.tags, first.aliases) == (("english", "news"), ("prod",))
    assert first.metrics == {"test": {"f1": 0.7, "loss": 0.6}}
    assert (second.parents, second.strategy, second.aliases) == (("finance-tone@1",), "fine-tune", ("candidate",))
    assert second.metrics == {"test": {"f1": 0.9, "loss": 0.4}, "untrained": {"f1": 0.25}}
    assert versions["legal-ner@1"].manifest.labels == ("Société", "Gericht")
    assert (versions["foreign@1"].manifest, versions["orphan@1"].parents) == (None, ("gone@1",))
    assert older.checkpoint("finance-tone@prod").digest == first.digest
    assert older.verify() == []


def test_it_is_found_by_all_that_is_new(older):
    def found(**conditions):
        return [version.reference for version in older.find(**conditions)]

    assert found(text="societe") == ["legal-ner@1"]
    assert found(text="prod") == found(text="english") == ["finance-tone@1"]
    assert found(where=["f1>=0.8"], sort="f1") == ["foreign@1", "finance-tone@2", "legal-ner@1"]
    assert found(ancestor="finance-tone@1") == ["finance-tone@2"]
    assert older.best(metric="f1", base="org/tiny").reference == "finance-tone@2"
    assert [(cell.domain, cell.best) for cell in older.overview("f1")] == [
        ("finance", "finance-tone@2"), ("legal", "legal-ner@1"), ("news", "foreign@1"),
    ]  # fmt: skip


def test_the_history_of_aliases_is_still_there(older, request):
    told = [(move.alias, move.from_number, move.to_number, move.undoes) for move in older.alias_history("finance-tone")]
    moves = [("prod", None, 1, None), ("candidate", None, 2, None), ("prod", 1, 2, None), ("prod", 2, 1, 3)]
    stem = request.node.callspec.params["older"]
    assert told == ([] if stem < "m004" else moves[:2] if stem < "m006" else moves)


def test_it_goes_on_as_any_other(older, tmp_path):
    older.alias("finance-tone", "prod", 2)
    older.remove("finance-tone@1", force=True)
    older.add(make_checkpoint(tmp_path / "new", seed=99), name="gone")
    assert older.resolve("gone").number == 2  # numbers aren't given out again
    assert older.verify() == []


def test_a_pretrained_base_is_kept(older):
    bases = older.bases.all()
    assert [base.name for base in bases] in ([], ["village"])
    for base in bases:
        assert (base.parameters, base.metrics["test"]["perplexity"], base.provenance["vocabulary"]) == (1234, 9.5, 512)


@pytest.mark.parametrize("older", KNOWN[:-1], indirect=True)
def test_a_read_only_one_says_what_it_needs(older, monkeypatch):
    before = older.path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # tests may run as root, who may write all
    with pytest.raises(
        RegistryError, match=r"older lorary's registry has to be brought up to date.*registry\.db: can't"
    ):
        older.versions()
    assert older.path.read_bytes() == before
