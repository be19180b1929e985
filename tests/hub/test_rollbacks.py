import re
import sqlite3
from contextlib import closing

import pytest

from lorary.hub.errors import RegistryConflictError, UnknownReferenceError


def test_rollbacks_go_further_back_and_never_forth(four):
    for number in (1, 2, 3):
        four.alias("finance-tone", "prod", number)
    move = four.rollback("finance-tone", "prod", why="slow")
    assert (move.from_number, move.to_number, move.why) == (3, 2, "slow")
    assert four.rollback("finance-tone", "prod").to_number == 1
    with pytest.raises(RegistryConflictError, match="meant nothing else before version 1"):
        four.rollback("finance-tone", "prod")
    assert four.resolve("finance-tone@prod").number == 1


def test_a_move_after_a_rollback_is_taken_back_by_the_next(four):
    for number in (1, 2, 3):
        four.alias("finance-tone", "prod", number)
    four.rollback("finance-tone", "prod")
    four.alias("finance-tone", "prod", 4)
    assert four.rollback("finance-tone", "prod").to_number == 2  # what 4 replaced, not the 3 that was taken back
    assert four.rollback("finance-tone", "prod").to_number == 1


def test_going_to_an_earlier_version_by_hand_is_a_move_like_any_other(four):
    for number in (1, 2, 1):
        four.alias("finance-tone", "prod", number)
    assert [four.rollback("finance-tone", "prod").to_number for _ in range(2)] == [2, 1]


def test_an_alias_that_was_taken_away_comes_back(four):
    four.alias("finance-tone", "prod", 1)
    four.alias("finance-tone", "prod", 2)
    four.unalias("finance-tone", "prod")
    move = four.rollback("finance-tone", "prod")
    assert (move.from_number, move.to_number) == (None, 2)
    assert four.rollback("finance-tone", "prod").to_number == 1


def test_removed_versions_are_passed_over(four):
    for number in (1, 2, 1, 3, 4):
        four.alias("finance-tone", "prod", number)
    four.remove("finance-tone@3")
    four.alias("finance-tone", "prod", 1)
    four.remove("finance-tone@4")
    assert four.rollback("finance-tone", "prod").to_number == 2  # 4 and 3 are gone, 1 it means already
    four.remove("finance-tone@1")
    with pytest.raises(RegistryConflictError, match="version 1 of before was removed"):
        four.rollback("finance-tone", "prod")


@pytest.mark.parametrize(
    ("meant", "removed", "told"),
    [
        ((1,), (), ""),
        ((1, 2), (1,), "; version 1 of before was removed"),
        ((1, 2, 1, 2), (1,), "; version 1 of before was removed"),  # once, though it was meant twice
        ((1, 2, 3), (1, 2), "; version 2, version 1 of before were removed"),
    ],
)
def test_a_rollback_that_leads_nowhere_tells_what_was_removed(four, meant, removed, told):
    for number in meant:
        four.alias("finance-tone", "prod", number)
    for number in removed:
        four.remove(f"finance-tone@{number}")
    shows = f"`lorary alias finance-tone --history --registry {four.path}` shows all"
    message = f"can't go back, it meant nothing else before version {meant[-1]}{told}; {shows}"
    with pytest.raises(RegistryConflictError, match=re.escape(message)):
        four.rollback("finance-tone", "prod")


def test_an_alias_whose_only_version_was_removed_can_not_go_back(four):
    four.alias("finance-tone", "prod", 1)
    four.remove("finance-tone@1", force=True)
    with pytest.raises(RegistryConflictError, match="it has meant nothing else; version 1 of before was removed"):
        four.rollback("finance-tone", "prod")


def test_a_version_of_another_name_is_no_meaning_to_go_back_to(four, add):
    add(seed=9, name="other")
    for number in (1, 2):
        four.alias("finance-tone", "prod", number)
    four.remove("finance-tone@1")
    with pytest.raises(RegistryConflictError):
        four.rollback("finance-tone", "prod")
    assert four.resolve("other@1").aliases == ()


def test_other_aliases_have_histories_of_their_own(four):
    for alias, number in (("prod", 1), ("live", 4), ("prod", 2), ("live", 3)):
        four.alias("finance-tone", alias, number)
    four.rollback("finance-tone", "live")
    assert (four.resolve("finance-tone@prod").number, four.resolve("finance-tone@live").number) == (2, 4)


def test_an_alias_from_before_there_was_a_history(four):
    with closing(sqlite3.connect(four.path)) as connection, connection:
        connection.execute("INSERT INTO aliases SELECT adapter_id, 'prod', id FROM versions WHERE number = 2")
    with pytest.raises(UnknownReferenceError, match="it has meant version 2 all along"):
        four.rollback("finance-tone", "prod")
    four.alias("finance-tone", "prod", 3)
    assert four.rollback("finance-tone", "prod").to_number == 2
