"""A base whose row can't be read is told, hides none of the others, and can be removed."""

import json
import sqlite3
from contextlib import closing

import pytest

from lorary.hub.cli.main import main
from lorary.hub.errors import RegistryConflictError, UnknownReferenceError


@pytest.fixture
def two(add_base, registry):
    """A damaged base and a sound one; what damages the first."""
    damaged, sound = add_base("a-base"), add_base("b-base")

    def damage(what):
        with closing(sqlite3.connect(registry.path)) as db, db:
            db.execute(f"UPDATE bases SET {what} WHERE id = 'a-base'")

    return damaged, sound, damage


def lorary(registry, capsys, *words):
    code = main(["bases", *words, "--registry", str(registry.path)])
    return code, *capsys.readouterr()


def test_the_list_has_the_others(two, registry, capsys):
    two[2]("details = '['")
    code, out, err = lorary(registry, capsys)
    assert (code, len(out.splitlines())) == (1, 2)
    assert err.startswith("lorary: error: base 'a-base': its row is damaged")
    code, out, err = lorary(registry, capsys, "--json")
    assert (code, [base["name"] for base in json.loads(out)]) == (1, ["b-base"])
    assert lorary(registry, capsys, "b-base")[0] == 0
    code, out, err = lorary(registry, capsys, "c-base")
    assert "no base named 'c-base'" in err
    code, out, err = lorary(registry, capsys, "a-base")
    assert (code, "base 'a-base': its row is damaged" in err) == (1, True)


@pytest.mark.parametrize(
    "what", ["details = '['", "parameters = 'many'", "digest = 'x'", "digest = x'00'", "fingerprint = 'f'", "id = id"]
)
def test_it_can_be_removed(two, registry, capsys, what):
    damaged, sound, damage = two
    damage(what)
    code, out, _ = lorary(registry, capsys, "--remove", "a-base")
    assert (code, out.startswith("a-base was removed.")) == (0, True)
    readable = what in ("fingerprint = 'f'", "id = id")
    assert ("Its row was damaged; `lorary gc" in out) == (not readable)
    assert [base.name for base in registry.bases.all()] == ["b-base"]
    registry.collect()
    assert (damaged.folder.exists(), sound.folder.exists(), registry.verify()) == (False, True, [])
    with pytest.raises(UnknownReferenceError, match="did you mean b-base"):
        registry.bases.remove("a-base")


def test_what_is_left_of_it_is_told_as_json(two, registry, capsys):
    two[2]("parameters = 'many'")
    code, out, _ = lorary(registry, capsys, "--remove", "a-base", "--json")
    told = json.loads(out)
    assert (code, told["name"]) == (0, "a-base")
    assert told["damaged"].startswith("its row is damaged (expected a whole number")


@pytest.mark.parametrize("known_by", ["base_fingerprint = 'aaaa'", "base_id = 'a-base'"])
def test_adapters_that_were_trained_on_it_are_told(two, add, registry, known_by):
    add()
    two[2]("parameters = 'many', fingerprint = 'aaaa'")
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute(f"UPDATE versions SET {known_by}")
    with pytest.raises(RegistryConflictError, match=r"base 'a-base' is needed by finance-tone@1; remove these first"):
        registry.bases.remove("a-base")
    assert registry.bases.remove("a-base", force=True).reference == "a-base"
    assert [version.reference for version in registry.versions()] == ["finance-tone@1"]


def test_a_name_in_no_registry_makes_none(registry):
    with pytest.raises(UnknownReferenceError):
        registry.bases.remove("a-base")
    assert not registry.path.exists()


@pytest.mark.parametrize("what", ["fingerprint", "id", "architecture"])
def test_a_text_that_is_none_hides_no_other_base(two, registry, capsys, what):
    two[2](f"{what} = CAST(x'ff' AS TEXT)")
    code, out, err = lorary(registry, capsys, "--json")
    assert (code, [base["name"] for base in json.loads(out)]) == (1, ["b-base"])
    assert "its row is damaged" in err
    assert any("its row is damaged" in str(finding) for finding in registry.verify())


def test_nothing_is_collected_while_a_row_does_not_say_what_it_needs(two, add, registry):
    damaged, _, damage = two
    damage("digest = 'x'")
    (problem,) = registry.collect().problems
    assert problem.startswith("1 row(s) don't say which file they need, so none is deleted")
    assert damaged.folder.exists()
    registry.bases.remove("a-base")
    version = add(0)
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE files SET sha256 = CAST(x'ff' AS TEXT)")
    assert registry.collect().objects == 0
    assert any(version.reference in str(finding) for finding in registry.verify())
