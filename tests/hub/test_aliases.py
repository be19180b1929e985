import pwd
import re
import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.errors import InvalidReferenceError, RegistryError, UnknownReferenceError, UsageError
from lorary.hub.keeping import methods
from lorary.hub.remote import pull, push
from lorary.hub.tables.database import writing


def moves(registry, alias="prod"):
    return [(move.from_number, move.to_number) for move in registry.alias_history("finance-tone", alias)]


def test_every_move_is_in_the_history(four, monkeypatch):
    monkeypatch.setenv("LORARY_USER", " Ana Müller ")
    assert four.alias("finance-tone", "prod", 1, why=" first ")
    four.alias("finance-tone", "live", 1)
    assert four.alias("finance-tone", "prod", 3)
    assert not four.alias("finance-tone", "prod", 3)  # it means that already: no move
    four.unalias("finance-tone", "prod", why="retired")
    assert moves(four) == [(None, 1), (1, 3), (3, None)]
    assert [move.why for move in four.alias_history("finance-tone", "prod")] == ["first", None, "retired"]
    assert {move.who for move in four.alias_history("finance-tone")} == {"Ana Müller"}
    assert [move.alias for move in four.alias_history("finance-tone")] == ["prod", "live", "prod", "prod"]


def test_a_move_is_dated_in_utc(four):
    before = datetime.now(UTC)
    four.alias("finance-tone", "prod", 1)
    at = datetime.fromisoformat(four.alias_history("finance-tone")[0].at)
    assert at.utcoffset() == timedelta(0)
    assert before - timedelta(seconds=1) < at <= datetime.now(UTC)


def test_without_a_name_given_the_login_name_signs(four, monkeypatch):
    monkeypatch.setenv("LOGNAME", "ana")
    four.alias("finance-tone", "prod", 1)
    assert four.alias_history("finance-tone")[0].who == "ana"
    monkeypatch.setenv("LORARY_USER", " \t")  # blanks are no name
    four.alias("finance-tone", "prod", 2)
    assert four.alias_history("finance-tone")[1].who == "ana"
    monkeypatch.setenv("LOGNAME", "a\nb")
    with pytest.raises(UsageError, match="the login name: expected one line"):
        four.alias("finance-tone", "prod", 3)


def test_a_user_without_a_login_name_signs_as_unknown(four, monkeypatch):
    def nobody(user):
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for variable in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    four.alias("finance-tone", "prod", 1)
    assert four.alias_history("finance-tone")[0].who == "unknown"


def test_a_reason_of_blanks_is_none(four):
    four.alias("finance-tone", "prod", 1, why=" \t")
    assert four.alias_history("finance-tone")[0].why is None
    four.remove("finance-tone@1", force=True, why=" \t")
    assert four.alias_history("finance-tone")[1].why == "finance-tone@1 was removed"  # the usual one isn't hidden


def test_a_forced_removal_is_in_the_history(four):
    four.alias("finance-tone", "prod", 2)
    four.alias("finance-tone", "live", 2)
    four.remove("finance-tone@2", force=True)
    assert moves(four) == moves(four, "live") == [(None, 2), (2, None)]
    assert four.alias_history("finance-tone")[-1].why == "finance-tone@2 was removed"
    four.remove("finance-tone@1", force=True, why="wrong data")  # no alias, no move
    assert len(four.alias_history("finance-tone")) == 4
    four.alias("finance-tone", "prod", 3)
    four.remove("finance-tone@prod", force=True)
    assert four.alias_history("finance-tone")[-1].why == "finance-tone@3 was removed"  # what it meant, not its name


def test_a_removal_says_what_it_removed_where_an_alias_moves_meanwhile(four, monkeypatch):
    four.alias("finance-tone", "prod", 1)

    def moved_first(path):
        monkeypatch.undo()
        Registry(path).alias("finance-tone", "prod", 2)
        return writing(path)

    monkeypatch.setattr(methods, "writing", moved_first)
    assert four.remove("finance-tone@prod", force=True).number == 2
    move = four.alias_history("finance-tone")[-1]
    assert (move.from_number, move.to_number, move.why) == (2, None, "finance-tone@2 was removed")


def test_a_refused_change_leaves_no_trace(four):
    for refused in (
        lambda: four.alias("finance-tone", "prod", 9),
        lambda: four.unalias("finance-tone", "prod"),
        lambda: four.rollback("finance-tone", "prod"),
        lambda: four.rollback("nobody", "prod"),
        lambda: four.alias_history("nobody"),
    ):
        with pytest.raises(UnknownReferenceError):
            refused()
    assert four.alias_history("finance-tone") == []


def test_the_history_is_only_added_to(four):
    four.alias("finance-tone", "prod", 1)
    with closing(sqlite3.connect(four.path)) as connection:
        for statement in ("UPDATE alias_moves SET who = 'nobody'", "DELETE FROM alias_moves"):
            with pytest.raises(sqlite3.IntegrityError, match="only added to"):
                connection.execute(statement)


@pytest.mark.parametrize("value", ["'abc'", "x'00'", "9e999", "CAST(x'ff' AS TEXT)"])
def test_a_history_with_a_number_that_is_none_is_told(four, value):
    four.alias("finance-tone", "prod", 1)
    with closing(sqlite3.connect(four.path)) as connection, connection:
        connection.execute(
            f"INSERT INTO alias_moves SELECT 2, 1, 'prod', 1, {value}, at, who, NULL, NULL, NULL FROM alias_moves"
        )
    with pytest.raises(RegistryError, match="the history of finance-tone's aliases is damaged"):
        four.alias_history("finance-tone")


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31mb", "\u202edcba", "x" * 501, "\udcff", "\x00"])
def test_reasons_and_users_are_lines_of_printable_text(four, monkeypatch, text):
    with pytest.raises(UsageError, match="the reason: expected one line"):
        four.alias("finance-tone", "prod", 1, why=text)
    if "\x00" not in text:
        monkeypatch.setenv("LORARY_USER", text)
        with pytest.raises(UsageError, match="LORARY_USER: expected one line"):
            four.alias("finance-tone", "prod", 1)
    assert four.alias_history("finance-tone") == []


def test_a_reason_has_room_for_500_signs_beside_blanks(four):
    four.alias("finance-tone", "prod", 1, why=f" {'x' * 500}\n")
    assert four.alias_history("finance-tone")[0].why == "x" * 500


@pytest.mark.parametrize(("text", "found"), [("x" * 501, "501 signs"), ("é\x1b[31m", r"'\xe9\x1b[31m'")])
def test_what_is_wrong_with_a_line_is_told_in_signs_that_a_terminal_only_prints(four, text, found):
    with pytest.raises(UsageError, match=re.escape(f"at most 500 signs, found {found}")):
        four.alias("finance-tone", "prod", 1, why=text)


@pytest.mark.parametrize("alias", ["3", "Prod", "a/b", "a@b", "", "pr\x1bod", "<b>", "-x"])
def test_what_cannot_be_an_alias(four, alias):
    for refused in (four.unalias, four.rollback):
        with pytest.raises(InvalidReferenceError):
            refused("finance-tone", alias)
    with pytest.raises(InvalidReferenceError):
        four.alias("finance-tone", alias, 1)


@pytest.mark.parametrize("name", ["finance-tone@1", "./folder", "user/repo", "A B"])
def test_what_cannot_be_a_name(four, name):
    for refused in (
        lambda: four.alias(name, "prod", 1),
        lambda: four.unalias(name, "prod"),
        lambda: four.rollback(name, "prod"),
        lambda: four.alias_history(name),
    ):
        with pytest.raises(InvalidReferenceError, match="can't be a name"):
            refused()


def test_an_alias_of_another_name_is_another_alias(add, registry):
    for name in ("other", "finance-tone"):
        for seed in range(2):
            add(seed, name=name)
        assert registry.alias(name, "prod", 1)
    registry.unalias("other", "prod")
    assert moves(registry) == [(None, 1)]
    assert registry.resolve("finance-tone@prod").number == 1


@pytest.fixture
def refuse_aliases():
    """Have the database refuse every alias: as good a failure as a kill at that moment."""

    def refuse(registry):
        registry.path.parent.mkdir(parents=True, exist_ok=True)
        with writing(registry.path) as db:
            db.execute("CREATE TRIGGER full BEFORE INSERT ON aliases BEGIN SELECT RAISE(ABORT, 'no room'); END")

    return refuse


def test_a_version_comes_with_its_aliases_or_not_at_all(registry, add, tmp_path, refuse_aliases):
    version = add(0, aliases=["prod", "candidate"], why="first one")
    assert version.aliases == ("candidate", "prod")
    assert {move.why for move in registry.alias_history("finance-tone")} == {"first one"}
    refuse_aliases(registry)
    with pytest.raises(RegistryError, match="no room"):
        add(1, aliases=["new"])
    assert main(["import", str(make_checkpoint(tmp_path / "other", seed=2)), "--name", "other", "--alias", "new",
                 "--registry", str(registry.path)]) == 1  # fmt: skip
    assert [one.reference for one in registry.versions()] == ["finance-tone@1"]
    assert [finding for finding in registry.verify() if finding.level == "error"] == []


def test_a_pulled_version_comes_with_its_aliases_or_not_at_all(registry, add, tmp_path, elsewhere, refuse_aliases):
    add(0, aliases=["prod"])
    (tmp_path / "share").mkdir()
    push(registry, "finance-tone", f"file://{tmp_path}/share")
    refuse_aliases(elsewhere)
    with pytest.raises(RegistryError, match="no room"):
        pull(elsewhere, f"file://{tmp_path}/share/finance-tone")
    assert elsewhere.versions() == []


def test_the_version_that_is_there_gets_the_alias(add):
    add(0)
    assert add(0, aliases=["prod"]).aliases == ("prod",)
    assert add(0, aliases=["prod"]).aliases == ("prod",)


def test_an_alias_that_is_taken_may_stay(add):
    add(0, aliases=["prod"])
    assert add(1, aliases=["prod", "new"], only_free=True).aliases == ("new",)
    assert add(1, aliases=["prod"]).aliases == ("new", "prod")


def test_an_alias_that_cant_be_one_is_told_before_anything_is_written(registry, add):
    with pytest.raises(InvalidReferenceError, match="Bad"):
        add(0, aliases=["Bad One"])
    assert not registry.path.exists()
