"""One row that can't be read is told, and stops nothing that the others are asked for."""

import json
import re
import sqlite3
from contextlib import closing

import pytest

from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.errors import RegistryError, UnknownReferenceError
from lorary.hub.importing import import_registry
from lorary.hub.remote import pull, push, status, sync

PROBLEM = r"the registry's rows are damaged \(.*\); go back to a copy of it"
NOT_UTF8 = "CAST(x'ff' AS TEXT)"


def damage(registry, number, what="parameters = 'many'", name="finance-tone"):
    of = "adapter_id = (SELECT id FROM adapters WHERE name = ?)"
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute(f"UPDATE versions SET {what} WHERE number = ? AND {of}", [number, name])


def damage_metric(registry, number, value):
    of = "(SELECT id FROM versions WHERE number = ?)"
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute(f"UPDATE metrics SET value = {value} WHERE version_id = {of}", [number])


@pytest.fixture
def measured(add, registry):
    """Three versions of one name, the later the better."""
    for seed in range(3):
        add(seed=seed, metrics={"test": {"f1": 0.5 + seed / 10}})
    return registry


@pytest.mark.parametrize("what", ["parameters = 'many'", "rank = x'00'", f"method = {NOT_UTF8}"])
def test_each_version_is_read_for_itself(four, what):
    damage(four, 2, what)
    first, damaged, *rest = four.each()
    assert [version.number for version in (first, *rest)] == [1, 3, 4]
    assert damaged.reference == "finance-tone@2"
    assert re.search(r"damaged|could not decode", damaged.problem, re.IGNORECASE)
    assert [one.reference for one in four.each("finance-tone")] == [f"finance-tone@{number}" for number in range(1, 5)]
    assert list(four.each("nobody")) == []
    with pytest.raises(RegistryError):
        four.versions()


def test_the_error_names_the_version(four):
    damage(four, 2)
    with pytest.raises(RegistryError, match=f"^finance-tone@2: {PROBLEM}$"):
        four.find(domain="finance")
    assert four.resolve("finance-tone@3").number == 3


def test_the_list_has_the_others(four, capsys):
    words = ["list", "--registry", str(four.path)]
    damage(four, 2)
    damage(four, 4)
    assert main(words) == 1
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3  # with the heading
    assert [line.split(":")[2] for line in err.splitlines()] == [" finance-tone@2", " finance-tone@4"]
    assert main([*words, "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["number"] for row in json.loads(out)] == [1, 3]
    assert len(err.splitlines()) == 2
    assert main([*words, "--csv"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_the_best_of_those_that_can_be_read_is_chosen(measured, capsys):
    damage(measured, 3)
    assert measured.best(metric="f1", domain="finance").number == 2
    assert main(["best", "--registry", str(measured.path)]) == 0
    out, err = capsys.readouterr()
    assert "finance-tone@2" in out
    assert re.match(f"finance-tone@3 would be the best, but can't be read: {PROBLEM}", err)
    damage(measured, 1)
    damage(measured, 2)
    with pytest.raises(RegistryError, match=r"^finance-tone@3: the registry's rows are damaged"):
        measured.best(metric="f1", domain="finance")


@pytest.mark.parametrize("value", ["'abc'", "x'00'", "9e999", "-9e999"])
def test_a_metric_that_is_no_number_is_none(measured, value):
    damage_metric(measured, 1, value)
    assert measured.best(metric="f1").number == 3
    (cell,) = measured.overview()
    assert (cell.best, cell.versions) == ("finance-tone@3", 3)
    for number in (2, 3):
        damage_metric(measured, number, value)
    with pytest.raises(UnknownReferenceError):
        measured.best(metric="f1")
    (cell,) = measured.overview()
    assert (cell.best, cell.value, cell.metric) == (None, None, None)


def test_another_version_is_shown_with_the_damaged_parent(add, registry, capsys):
    add(0)
    add(1, parents=["finance-tone@1"])
    damage(registry, 1)
    words = ["show", "finance-tone@2", "--registry", str(registry.path)]
    assert main(words) == 0
    assert re.search(r"finance-tone@1 +\(can't be read\)", capsys.readouterr().out)
    assert main([*words, "--json"]) == 0
    lineage = json.loads(capsys.readouterr().out)["lineage"]
    assert lineage["ancestors"] == [{"reference": "finance-tone@1", "damaged": True}]


def test_the_aliases_of_the_others_are_told(four, capsys):
    four.alias("finance-tone", "prod", 3)
    four.alias("finance-tone", "old", 1)
    damage(four, 1)
    assert main(["alias", "finance-tone", "--json", "--registry", str(four.path)]) == 0
    assert {row["alias"]: row["version"] for row in json.loads(capsys.readouterr().out)} == {"old": 1, "prod": 3}


def test_another_registry_is_imported_without_it(four, elsewhere, add_base):
    for name in ("a-base", "b-base"):
        add_base(name)
    damage(four, 2)
    with closing(sqlite3.connect(four.path)) as db, db:
        db.execute("UPDATE bases SET details = '[' WHERE id = 'a-base'")
    outcomes = {outcome.source: outcome for outcome in import_registry(elsewhere, four.path)}
    assert {source: outcome.state for source, outcome in outcomes.items()} == {
        "base a-base": "refused", "base b-base": "taken", "finance-tone@2": "refused",
        **dict.fromkeys(("finance-tone@1", "finance-tone@3", "finance-tone@4"), "taken"),
    }  # fmt: skip
    assert re.search(PROBLEM, outcomes["finance-tone@2"].note)
    assert [version.number for version in elsewhere.versions()] == [1, 2, 3]


def test_a_base_that_can_not_be_read_here_refuses_its_like_alone(four, elsewhere, add_base):
    add_base("a-base")
    assert len(list(import_registry(elsewhere, four.path))) == 5
    with closing(sqlite3.connect(elsewhere.path)) as db, db:
        db.execute("UPDATE bases SET details = '['")
    states = [outcome.state for outcome in import_registry(elsewhere, four.path)]
    assert states == ["refused", *["there already"] * 4]


def test_a_name_is_shared_beside_it(add, registry, elsewhere, tmp_path):
    add(0)
    add(1, name="other")
    (tmp_path / "team").mkdir()
    for name in ("finance-tone", "other"):
        push(registry, name, f"file://{tmp_path}/team")
        pull(elsewhere, f"file://{tmp_path}/team/{name}")
    add(2)
    add(3, name="other")
    damage(registry, 2, name="other")
    assert [one.relation for one in status(registry)] == ["ahead", "ahead"]
    assert status(registry, "other")[0].ahead == (2,)
    first, second = sync(registry)
    assert (len(first.pushed), first.problem) == (1, None)
    assert re.match(f"other@2: {PROBLEM}", second.problem)
    damage(elsewhere, 1)
    assert pull(elsewhere, f"file://{tmp_path}/team/finance-tone").version.number == 2
    assert [one.relation for one in status(elsewhere)] == ["same", "same"]


def test_a_digest_is_found_where_it_can_be_read(add, registry):
    version = add(0)
    add(0, name="other")
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE versions SET parameters = 'many' WHERE id = 1")
    assert [one.reference for one in registry.with_digest(version.digest)] == ["other@1"]
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE versions SET parameters = 'many'")
    with pytest.raises(RegistryError, match=r"finance-tone@1: .*damaged"):
        registry.with_digest(version.digest)


def test_it_can_be_removed(four, capsys):
    four.alias("finance-tone", "prod", 2)
    weights = four.checkpoint("finance-tone@2").files["adapter_model.safetensors"]
    damage(four, 2)
    words = ["rm", "finance-tone@2", "--registry", str(four.path)]
    assert main(words) == 1
    assert "finance-tone@2 is needed by finance-tone@prod" in capsys.readouterr().err
    assert main([*words, "--force"]) == 0
    assert "finance-tone@2 is removed" in capsys.readouterr().out
    assert [version.number for version in Registry(four.path).versions()] == [1, 3, 4]
    assert (weights.exists(), four.verify()) == (False, [])
    assert four.alias_history("finance-tone", "prod")[-1].to_number is None


@pytest.mark.parametrize("what", ["number = 'abc'", "number = 2.5", f"number = {NOT_UTF8}", "number = x'00'"])
def test_a_version_whose_number_is_none_is_told_and_the_others_are_asked_for(four, what, capsys):
    four.alias("finance-tone", "prod", 3)
    damage(four, 2, what)
    assert [getattr(one, "number", None) for one in four.each()].count(None) == 1
    assert (four.numbers("finance-tone"), four.aliases("finance-tone")) == ([1, 3, 4], {"prod": 3})
    with pytest.raises(UnknownReferenceError, match="has no version 2; it has versions 1, 3, 4, alias prod"):
        four.resolve("finance-tone@2")
    assert [finding for finding in four.verify() if re.search(PROBLEM, str(finding))]
    four.alias("finance-tone", "prod", 4)
    assert four.rollback("finance-tone", "prod").to_number == 3
    assert main(["list", "--json", "--registry", str(four.path)]) == 1
    assert [row["number"] for row in json.loads(capsys.readouterr().out)] == [1, 3, 4]


@pytest.mark.parametrize("what", ["method = x'00'", "parameters = 1.5", "rank = -1", f"digest = {NOT_UTF8}"])
def test_no_value_is_passed_on_that_its_column_can_not_have(four, what):
    damage(four, 2, what)
    with pytest.raises(RegistryError, match=f"^finance-tone@2: {PROBLEM}$"):
        four.resolve("finance-tone@2")
    assert list(four.digests("finance-tone")) == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "what",
    [
        *(f"adapters SET {column} = {NOT_UTF8} WHERE id = 1" for column in ("name", "domain", "task")),
        f"metrics SET name = {NOT_UTF8} WHERE version_id = 2",
        f"aliases SET name = {NOT_UTF8}",
        "aliases SET name = x'00'",
        f"remotes SET remote = {NOT_UTF8} WHERE version_id = 1",
        "remotes SET \"commit\" = x'00' WHERE version_id = 1",
    ],
)
def test_a_text_that_is_none_stops_nothing_that_others_are_asked_for(measured, add, what, tmp_path, capsys):
    add(7, name="other", metrics={"test": {"f1": 0.9}})
    measured.alias("finance-tone", "prod", 2)
    (tmp_path / "team").mkdir()
    for name in ("finance-tone", "other"):
        push(measured, name, f"file://{tmp_path}/team")
    with closing(sqlite3.connect(measured.path)) as db, db:
        db.execute(f"UPDATE {what}")
    assert measured.best(metric="f1", task="text-classification").reference == "other@1"
    assert max(cell.best for cell in measured.overview() if cell.best) == "other@1"
    assert "same" in {one.relation for one in status(measured, "other")} & {one.relation for one in status(measured)}
    assert main(["best", "--registry", str(measured.path)]) == 0
    assert "other@1" in capsys.readouterr().out
    assert main(["show", "other", "--registry", str(measured.path)]) == 0
    if "aliases" in what:
        assert measured.aliases("finance-tone") == {}
        measured.remove("finance-tone@2", force=True)
        assert measured.numbers("finance-tone") == [1, 3]


def test_verify_goes_on_past_a_metric_and_a_parent_that_are_none(measured, add, capsys):
    add(5, parents=["finance-tone@1"])
    damage_metric(measured, 1, NOT_UTF8)
    with closing(sqlite3.connect(measured.path)) as db, db:
        db.execute("UPDATE parents SET parent_id = 'abc'")
    assert any("finance-tone@1" in str(finding) and "no finite number" in str(finding) for finding in measured.verify())
    assert main(["show", "finance-tone@4", "--registry", str(measured.path)]) == 0
