"""Importing another registry: versions, metrics, tags, aliases, lineage, and what is there already."""

import pytest

from checkpoints import make_checkpoint, make_manifest
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.errors import RegistryError
from lorary.hub.importing import import_registry


@pytest.fixture
def other(tmp_path):
    """A registry with a parent, its child under an earlier name, aliases, tags and metrics."""
    other = Registry(tmp_path / "team" / "registry.db")
    made = lambda seed: make_checkpoint(tmp_path / f"made/{seed}", seed=seed)  # noqa: E731
    parent = other.add(made(1), name="tone", metrics={"test": {"f1": 0.8}}, tags=["good"], strategy="fine-tune")
    other.add(made(2), name="tone", metrics={"test": {"f1": 0.9}})
    other.add(made(3), name="aaa", parents=[parent.reference], strategy="intermediate")
    other.alias("tone", "prod", 1)
    other.alias("tone", "candidate", 2)
    return other


def known(registry):
    return {
        (version.name, version.digest, version.created_at, version.strategy, version.tags, version.aliases,
         str(version.metrics))
        for version in registry.versions()
    }  # fmt: skip


def test_everything_comes_along(registry, other):
    outcomes = list(import_registry(registry, other.path))
    assert [outcome.state for outcome in outcomes] == ["taken"] * 3
    assert known(registry) == known(other)
    assert registry.resolve("aaa").parents == ("tone@1",)
    assert registry.resolve("tone@prod").number == 1
    assert registry.verify() == []
    again = list(import_registry(registry, other.path))
    assert [outcome.state for outcome in again] == ["there already"] * 3
    assert known(registry) == known(other)


def test_times_are_those_of_the_first_registration(registry, other, monkeypatch):
    import sqlite3

    with sqlite3.connect(other.path) as db:
        db.execute("UPDATE versions SET created_at = '2020-01-02T03:04:05+00:00'")
    list(import_registry(registry, other.path))
    assert {version.created_at for version in registry.versions()} == {"2020-01-02T03:04:05+00:00"}


def test_numbers_and_parents_follow_where_names_are_taken(registry, other, tmp_path):
    registry.add(make_checkpoint(tmp_path / "mine", seed=9), name="tone")
    registry.alias("tone", "prod", 1)
    outcomes = {outcome.source: outcome for outcome in import_registry(registry, other.path)}
    assert outcomes["tone@1"].reference == "tone@2"
    assert registry.resolve("aaa").parents == ("tone@2",)
    assert "prod stays on tone@1" in outcomes["tone@1"].note
    assert registry.resolve("tone@prod").number == 1
    assert registry.resolve("tone@candidate").number == 3


def test_what_contradicts_is_refused_and_the_rest_taken(registry, other, tmp_path, capsys):
    registry.add(make_checkpoint(tmp_path / "mine", manifest=make_manifest(domain="legal")), name="tone")
    assert main(["import", str(other.path), "--registry", str(registry.path)]) == 1
    told = capsys.readouterr().out
    assert "1 taken" in told
    assert "2 refused" in told
    assert registry.resolve("aaa").parents == ("tone@1",)  # as text: it isn't the tone that is here


def test_a_damaged_version_is_refused(registry, other):
    object_ = other.checkpoint("tone@2").files["adapter_model.safetensors"]
    object_.unlink()
    states = {outcome.source: outcome.state for outcome in import_registry(registry, other.path)}
    assert states == {"tone@1": "taken", "tone@2": "refused", "aaa@1": "taken"}
    assert registry.verify() == []


def test_a_registry_isnt_imported_into_itself(registry, other, capsys):
    with pytest.raises(RegistryError, match="is the registry to import into"):
        list(import_registry(other, other.path))
    assert main(["import", str(other.path), "--registry", str(registry.path), "--domain", "x"]) == 2
    assert not registry.path.exists()


def test_the_other_registry_stays_as_it_is(registry, other):
    before = other.path.read_bytes()
    list(import_registry(registry, other.path))
    assert other.path.read_bytes() == before
