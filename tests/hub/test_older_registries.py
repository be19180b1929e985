"""Registries as earlier versions of lorary left them, brought up to date with all that they hold.

`registries/m001.sql` and `m002.sql` are dumps of registries written by the code of that time; `registries/store/` has
their files, and the base that was pretrained in the second.
"""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.errors import RegistryError
from lorary.hub.tables.schema import MIGRATIONS

STORED = Path(__file__).parent / "registries"


@pytest.fixture(params=["m001", "m002"])
def older(request, tmp_path):
    """An older registry with its store."""
    db = sqlite3.connect(tmp_path / "registry.db")
    db.executescript((STORED / f"{request.param}.sql").read_text(encoding="utf-8"))
    db.close()
    shutil.copytree(STORED / "store" / "objects", tmp_path / "registry.store" / "objects")
    if request.param == "m002":
        shutil.copytree(STORED / "store" / "bases", tmp_path / "registry.store" / "bases")
    return Registry(tmp_path / "registry.db")


def test_every_earlier_schema_has_a_stored_file():
    """A registry that is out in the world has the schema of a release: one more dump for each that is released."""
    names = [name.partition("_")[0] for name, _ in MIGRATIONS]
    stored = sorted(path.stem for path in STORED.glob("*.sql"))
    assert stored == names[: len(stored)]


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


def test_a_read_only_one_says_what_it_needs(older, monkeypatch):
    before = older.path.read_bytes()
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # tests may run as root, who may write all
    with pytest.raises(
        RegistryError, match=r"older lorary's registry has to be brought up to date.*registry\.db: can't"
    ):
        older.versions()
    assert older.path.read_bytes() == before
