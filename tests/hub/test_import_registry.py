"""Importing another registry: versions, metrics, tags, aliases with their history, lineage, and what is there."""

import re
import shutil
import sqlite3

import pytest

from checkpoints import make_checkpoint, make_manifest, rot
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.errors import RegistryError
from lorary.hub.importing import Outcome, import_registry


@pytest.fixture
def other(tmp_path, monkeypatch):
    """A registry with a parent, its child under an earlier name, aliases, tags and metrics."""
    other = Registry(tmp_path / "team" / "registry.db")
    made = lambda seed: make_checkpoint(tmp_path / f"made/{seed}", seed=seed)  # noqa: E731
    parent = other.add(made(1), name="tone", metrics={"test": {"f1": 0.8}}, tags=["good"], strategy="fine-tune")
    other.add(made(2), name="tone", metrics={"test": {"f1": 0.9}})
    other.add(made(3), name="aaa", parents=[parent.reference], strategy="intermediate")
    monkeypatch.setenv("LORARY_USER", "ann")
    other.alias("tone", "prod", 1)
    other.alias("tone", "prod", 2, why="better f1")
    other.rollback("tone", "prod", why="slower")
    other.alias("tone", "candidate", 2)
    monkeypatch.setenv("LORARY_USER", "ben")
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
    with sqlite3.connect(other.path) as db:
        db.execute("UPDATE versions SET created_at = '2020-01-02T03:04:05+00:00'")
    list(import_registry(registry, other.path))
    assert {version.created_at for version in registry.versions()} == {"2020-01-02T03:04:05+00:00"}


def test_a_time_before_all_times_is_none(registry, other):
    with sqlite3.connect(other.path) as db:
        db.execute("UPDATE versions SET created_at = '0001-01-01T00:00:00+14:00'")  # in UTC, the year 0
    assert {outcome.state for outcome in import_registry(registry, other.path)} == {"taken"}
    assert "0001" not in {version.created_at[:4] for version in registry.versions()}


def test_a_reason_of_blanks_is_none_here(registry, other):
    with sqlite3.connect(other.path) as db:
        db.execute(
            "INSERT INTO alias_moves SELECT 9, 1, 'old', 1, NULL, at, who, ' ', NULL, NULL FROM alias_moves LIMIT 1"
        )
    list(import_registry(registry, other.path))
    assert [move.why for move in registry.alias_history("tone", "old")] == [None]


def test_numbers_and_parents_follow_where_names_are_taken(registry, other, tmp_path):
    registry.add(make_checkpoint(tmp_path / "mine", seed=9), name="tone")
    registry.alias("tone", "prod", 1)
    outcomes = {outcome.source: outcome for outcome in import_registry(registry, other.path)}
    assert outcomes["tone@1"].reference == "tone@2"
    assert registry.resolve("aaa").parents == ("tone@2",)
    assert outcomes["tone@prod"] == Outcome("tone@prod", "passed over", note="stays on tone@1 here")
    assert registry.resolve("tone@prod").number == 1
    assert registry.resolve("tone@candidate").number == 3


def told(registry, alias=None):
    """The history of the name's aliases, without the ids."""
    return [
        (move.alias, move.from_number, move.to_number, move.who, move.why, move.origin)
        for move in registry.alias_history("tone", alias)
    ]


def test_the_aliases_bring_their_history(registry, other):
    at = [move.at for move in other.alias_history("tone")]
    list(import_registry(registry, other.path))
    file = str(other.path)
    assert told(registry, "prod") == [
        ("prod", None, 1, "ann", None, f"{file}: - to 1"),
        ("prod", 1, 2, "ann", "better f1", f"{file}: 1 to 2"),
        ("prod", 2, 1, "ann", "slower", f"{file}: 2 to 1"),
    ]
    assert sorted(move.at for move in registry.alias_history("tone")) == sorted(at)
    assert registry.alias_history("tone", "prod")[2].undoes == registry.alias_history("tone", "prod")[1].id
    assert registry.resolve("tone@prod").number == 1
    assert registry.verify() == []
    before = told(registry)
    list(import_registry(registry, other.path))
    assert told(registry) == before  # once


def test_the_history_speaks_of_the_numbers_here(registry, other, tmp_path):
    registry.add(make_checkpoint(tmp_path / "mine", seed=9), name="tone")
    list(import_registry(registry, other.path))
    assert [move[1:3] for move in told(registry, "prod")] == [(None, 2), (2, 3), (3, 2)]
    assert told(registry, "prod")[1][5].endswith("registry.db: 1 to 2")
    registry.alias("tone", "prod", 3)
    assert registry.rollback("tone", "prod").to_number == 2
    assert registry.verify() == []


def test_versions_that_are_not_here_are_nothing_in_the_history(registry, other):
    other.alias("tone", "prod", 2)
    other.remove("tone@1", force=True)
    list(import_registry(registry, other.path))
    assert [move[1:3] for move in told(registry, "prod")] == [(None, None), (None, 1), (1, None), (None, 1)]
    assert told(registry, "prod")[0][5].endswith(": - to 1")
    assert registry.resolve("tone@prod").number == 1
    assert registry.verify() == []


def test_a_history_that_is_here_is_the_one_that_counts(registry, other, tmp_path):
    registry.add(make_checkpoint(tmp_path / "mine", seed=9), name="tone", aliases=["prod", "candidate"])
    registry.unalias("tone", "candidate")
    list(import_registry(registry, other.path))
    assert told(registry, "prod") == [("prod", None, 1, "ben", None, None)]
    assert told(registry, "candidate")[2] == ("candidate", None, 3, "ben", "imported with the version", None)


def test_an_alias_that_has_no_history_comes_too(registry, other):
    with sqlite3.connect(other.path) as db:
        db.execute("UPDATE aliases SET version_id = (SELECT id FROM versions WHERE number = 2) WHERE name = 'prod'")
        db.execute("INSERT INTO aliases SELECT adapter_id, 'old', version_id FROM aliases WHERE name = 'prod'")
    list(import_registry(registry, other.path))
    assert told(registry, "old") == [("old", None, 2, "ben", "imported with the version", None)]
    assert told(registry, "prod")[-1] == ("prod", 1, 2, "ben", "imported with the version", None)
    assert registry.verify() == []


def test_a_history_keeps_the_place_where_it_was_made(registry, other, tmp_path):
    between = Registry(tmp_path / "between" / "registry.db")
    list(import_registry(between, other.path))
    list(import_registry(registry, between.path))
    assert told(registry) == told(between)


def test_a_history_with_control_characters_is_refused(registry, other):
    with sqlite3.connect(other.path) as db:
        db.execute("INSERT INTO alias_moves (adapter_id, alias, to_number, at, who) VALUES "
                   "((SELECT id FROM adapters WHERE name = 'tone'), 'x', NULL, 'now', char(27) || '[2J')")  # fmt: skip
    outcomes = {outcome.source: outcome for outcome in import_registry(registry, other.path)}
    assert (outcomes["tone's aliases"].state, registry.alias_history("tone")) == ("refused", [])


def test_each_version_is_told_before_it_is_copied(registry, other):
    seen = []
    list(import_registry(registry, other.path, lambda *told: seen.append((*told, len(registry.versions())))))
    assert seen == [("tone@1", 0, 3, 0), ("tone@2", 1, 3, 1), ("aaa@1", 2, 3, 2)]


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


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "lorary.json"])
def test_a_version_whose_bytes_have_rotted_is_refused(registry, other, name):
    rot(other.checkpoint("tone@2").files[name])
    outcomes = {outcome.source: outcome for outcome in import_registry(registry, other.path)}
    # The three have one lorary.json between them.
    states = {"adapter_model.safetensors": ("taken", "refused", "taken"), "lorary.json": ("refused",) * 3}[name]
    assert [outcomes[source].state for source in ("tone@1", "tone@2", "aaa@1")] == list(states)
    assert f"tone@2: {name} isn't what was registered" in outcomes["tone@2"].note
    assert registry.verify() == []


def with_base(registry, folder):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    facts = {"fingerprint": "f" * 64, "architecture": "bert", "parameters": 7, "metrics": {}, "provenance": {}}
    return registry.bases.add(folder, name="tiny", **facts)


def link(path, tmp_path):
    (tmp_path / "secret").write_text("{}")  # the same content: the hash doesn't tell
    path.unlink()
    path.symlink_to(tmp_path / "secret")


def change(path, tmp_path):
    path.chmod(0o644)
    path.write_text('{"a": 1}')


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path, _: shutil.rmtree(path.parent), "can't be read"),
        (link, "is a link or a folder"),
        (change, "aren't what was registered"),
    ],
)
def test_a_damaged_base_is_refused_and_the_rest_taken(registry, other, tmp_path, damage, words):
    base = with_base(other, tmp_path / "base")
    damage(base.folder / "config.json", tmp_path)
    first, *rest = import_registry(registry, other.path)
    assert (first.source, first.state) == ("base tiny", "refused")
    assert words in first.note
    assert [outcome.state for outcome in rest] == ["taken"] * 3
    assert (registry.bases.all(), registry.verify()) == ([], [])


@pytest.mark.parametrize(
    "details",
    [None, "[]", "{}", '{"metrics": [1], "provenance": {}}', '{"metrics": {"test": 3}, "provenance": {}}',
     '{"metrics": {}, "provenance": [[1, 2]]}'],
)  # fmt: skip
def test_a_base_whose_row_is_damaged_is_told(registry, tmp_path, capsys, details):
    with_base(registry, tmp_path / "base")
    with sqlite3.connect(registry.path) as db:
        db.execute("UPDATE bases SET details = ?", [details])
    assert main(["bases", "--registry", str(registry.path)]) == 1
    assert "base 'tiny': its row is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("column", ["bases SET parameters", "base_files SET size"])
@pytest.mark.parametrize("value", ["'many'", "9e999"])
def test_a_base_with_a_number_that_is_none_is_told(registry, tmp_path, capsys, column, value):
    with_base(registry, tmp_path / "base")
    with sqlite3.connect(registry.path) as db:
        db.execute(f"UPDATE {column} = {value}")
    assert main(["bases", "--registry", str(registry.path)]) == 1
    assert "base 'tiny': its row is damaged" in capsys.readouterr().err


def test_a_base_that_tells_nonsense_of_itself_is_shown(registry, tmp_path, capsys):
    with_base(registry, tmp_path / "base")
    with sqlite3.connect(registry.path) as db:
        db.execute("UPDATE bases SET details = ?", ['{"metrics": {}, "provenance": {"data": 3}}'])
    assert main(["bases", "tiny", "--registry", str(registry.path)]) == 0
    assert "config.json" in capsys.readouterr().out


def test_a_registry_isnt_imported_into_itself(registry, other, capsys):
    with pytest.raises(RegistryError, match="is the registry to import into"):
        list(import_registry(other, other.path))
    assert main(["import", str(other.path), "--registry", str(registry.path), "--domain", "x"]) == 2
    assert not registry.path.exists()


def test_the_other_registry_stays_as_it_is(registry, other):
    before = other.path.read_bytes()
    list(import_registry(registry, other.path))
    assert other.path.read_bytes() == before


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_shows_how_far_it_is(registry, other, capsys, monkeypatch, terminal):
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
        monkeypatch.setenv("TERM", "xterm")
    assert main(["import", str(other.path), "--registry", str(registry.path)]) == 0
    told = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", capsys.readouterr().err)
    assert ("tone@1" in told, "2/3" in told) == (terminal, terminal)
