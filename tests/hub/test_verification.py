"""Files that differ from the catalogue, and rows that contradict the files."""

import errno
import re
import shutil
import sqlite3
from contextlib import closing

import pytest

from lorary.hub import Registry
from lorary.hub.errors import ChangedFilesError, CheckpointError, RegistryError, UnsafeFileError
from lorary.hub.files.store import Store, hash_file
from lorary.hub.keeping import verification


def messages(registry, reference=None):
    return [f"{f.level} {f.reference} {f.message}" for f in registry.verify(reference)]


def object_of(registry, reference, name):
    return registry.checkpoint(reference).files[name]


def test_verify_finds_each_damage_to_a_file(add, registry):
    add(0)
    add(1)
    assert registry.verify() == []
    weights = object_of(registry, "finance-tone@1", "adapter_model.safetensors")
    content = weights.read_bytes()
    weights.chmod(0o644)
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert re.match("error finance-tone@1 .*content has changed", *messages(registry))
    weights.write_bytes(content[:-1])
    assert re.match("error finance-tone@1 .*284 bytes, expected 285", *messages(registry))
    weights.unlink()
    assert re.match("error finance-tone@1 .*missing", *messages(registry))
    assert messages(registry, "finance-tone@2") == []
    with pytest.raises(RegistryError, match="missing from"):
        registry.checkpoint("finance-tone@1")


def test_files_that_have_changed_or_gone_do_not_leave_the_store(add, registry):
    version = add()
    checkpoint = registry.checkpoint("finance-tone")
    verification.demand_registered(version, checkpoint)
    weights = checkpoint.files["adapter_model.safetensors"]
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[::-1])
    with pytest.raises(ChangedFilesError, match=r"adapter_model\.safetensors isn't what was registered"):
        verification.demand_registered(version, checkpoint)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors can't be read \(No such file"):
        verification.demand_registered(version, checkpoint)


def test_many_versions_are_verified_a_part_at_a_time(add, registry, monkeypatch):
    monkeypatch.setattr(verification, "_AT_ONCE", 2)
    for seed in range(5):
        add(seed)
    assert registry.verify() == []
    for number in (1, 5):
        object_of(registry, f"finance-tone@{number}", "adapter_model.safetensors").unlink()
    assert [finding.reference for finding in registry.verify()] == ["finance-tone@1", "finance-tone@5"]


@pytest.mark.parametrize("value", ["9e999", "-9e999", "'abc'", "x'00'"])
def test_a_metric_that_is_no_number_is_told_and_hides_nothing(add, registry, value):
    for seed in range(3):
        add(seed, metrics={"test": {"f1": 0.5}})
    object_of(registry, "finance-tone@3", "adapter_model.safetensors").unlink()
    with closing(sqlite3.connect(registry.path)) as db:
        db.execute(f"UPDATE metrics SET value = {value} WHERE version_id = 2")
        db.commit()
    told = messages(registry)
    assert any("finance-tone@2 its metric test/f1 is" in line for line in told)
    assert any("finance-tone@3 adapter_model.safetensors: missing" in line for line in told)
    assert not any("finance-tone@1" in line for line in told)
    assert registry.overview()[0].value == 0.5


def test_of_a_metric_that_is_a_long_text_the_beginning_is_told(add, registry):
    add(metrics={"test": {"f1": 0.5}})
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE metrics SET value = ?", ["x" * 1000])
    (told,) = [line for line in messages(registry) if "metric" in line]
    assert told == f"error finance-tone@1 its metric test/f1 is {'x' * 40!r}, no finite number"


@pytest.mark.parametrize("at_once", [1, 1000])
def test_findings_are_in_the_order_of_the_names(add, registry, monkeypatch, at_once):
    monkeypatch.setattr(verification, "_AT_ONCE", at_once)
    for seed, name in enumerate(("zeta", "alpha", "zeta")):
        add(seed, name=name, metrics={"test": {"f1": 0.5, "accuracy": 0.5}})
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE metrics SET value = 9e999")
        db.execute("UPDATE versions SET rank = 77")
    versions = ["alpha@1", "zeta@1", "zeta@2"]
    told = [(finding.reference, finding.message.split()[2]) for finding in registry.verify()]
    metrics = [(version, f"test/{name}") for version in versions for name in ("accuracy", "f1")]
    assert told == metrics + [(version, "differs:") for version in versions]


def test_adding_again_mends_a_rotten_object(add, registry):
    add(0)
    config = object_of(registry, "finance-tone", "adapter_config.json")
    config.chmod(0o644)
    config.write_text("rotten")
    assert len(messages(registry)) == 1
    add(0, name="other")
    assert messages(registry) == []


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE versions SET digest = 'x'", "the digest differs"),
        ("UPDATE versions SET rank = 77", "the rank differs: 2 in the files, 77 in the catalogue"),
        ("UPDATE versions SET base_id = 'org/other'", "the base_id differs"),
        ("UPDATE versions SET manifest = '[broken'", "the manifest differs$"),
        ("DELETE FROM files WHERE name = 'adapter_config.json'", "^error finance-tone@1 no adapter_config.json"),
        ("DELETE FROM files WHERE name = 'lorary.json'", "the digest differs"),
        ("UPDATE files SET size = 1", "expected 1"),
        ("UPDATE files SET sha256 = '../../etc/passwd'", "isn't a sha256"),
        *(
            (f"UPDATE files SET name = '{name}' WHERE name = 'lorary.json'", "leaves its folder")
            for name in ("../x", "a/b", "a\\b", "..", ".", "")
        ),
        (
            "INSERT INTO aliases VALUES (1, 'ghost', 99)",
            "a row of aliases refers to a row of versions that isn't there",
        ),
    ],
)
def test_verify_finds_rows_that_contradict_the_files(add, registry, statement, message):
    add()
    with sqlite3.connect(registry.path) as connection:
        connection.execute(statement)
    connection.close()
    told = messages(registry)
    assert any(line.startswith("error") and re.search(message, line) for line in told), told
    assert len(registry.versions()) == 1


def test_what_sqlite_finds_wrong_is_told(add, registry):
    for seed in range(2):
        add(seed)
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET sql = replace(sql, '(digest)', '(method)') WHERE name = 'versions_digest'")
    told = [f"error None SQLite: row {number} missing from index versions_digest" for number in (1, 2)]
    assert messages(registry) == told


@pytest.mark.parametrize("value", ["'many'", "x'00'", "9e999"])
def test_rows_of_the_wrong_type_are_named(add, registry, value):
    add()
    with sqlite3.connect(registry.path) as connection:
        connection.execute(f"UPDATE versions SET parameters = {value}")
    connection.close()
    with pytest.raises(RegistryError, match="rows are damaged"):
        registry.versions()
    (told,) = messages(registry)
    assert told.startswith("error finance-tone@1 the registry's rows are damaged")


def test_a_link_in_the_store_is_not_followed(add, registry, tmp_path):
    add()
    config = object_of(registry, "finance-tone", "adapter_config.json")
    config.rename(tmp_path / "elsewhere")
    config.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeFileError, match="is a link"):
        registry.checkpoint("finance-tone")
    assert "is a link" in messages(registry)[0]


def test_a_file_that_can_not_be_read_hides_no_other(add, registry, monkeypatch):
    for seed in range(2):
        add(seed)
    torn = object_of(registry, "finance-tone@1", "adapter_model.safetensors")
    object_of(registry, "finance-tone@2", "adapter_model.safetensors").unlink()

    def read(path):
        if path == torn:
            raise OSError(errno.EIO, "Input/output error", str(path))
        return hash_file(path)

    monkeypatch.setattr(verification, "hash_file", read)
    first, second = messages(registry)
    assert re.match(r"error finance-tone@1 adapter_model\.safetensors: .*Input/output error", first)
    assert re.match(r"error finance-tone@2 adapter_model\.safetensors: missing", second)


def test_a_folder_of_the_store_that_leads_in_a_circle_is_a_finding(add, registry):
    add()
    folder = object_of(registry, "finance-tone", "adapter_model.safetensors").parent
    shutil.rmtree(folder)
    folder.symlink_to(folder)
    assert re.match(
        r"error finance-tone@1 adapter_model\.safetensors: .*can't be read", messages(registry, "finance-tone")[0]
    )


def test_an_object_that_versions_share_is_hashed_once(add, registry, monkeypatch):
    for seed in range(3):
        add(seed)
    hashed = []
    monkeypatch.setattr(verification, "hash_file", lambda path: hashed.append(path) or hash_file(path))
    assert registry.verify() == []
    assert sorted(hashed) == sorted(registry.path.with_name("registry.store").glob("objects/*/*"))


def test_a_version_that_is_removed_meanwhile_is_no_finding(add, registry, monkeypatch):
    for seed in range(2):
        add(seed)

    def removed_first(path):
        monkeypatch.undo()
        Registry(registry.path).remove("finance-tone@1")
        return hash_file(path)

    monkeypatch.setattr(verification, "hash_file", removed_first)
    assert registry.verify() == []
    assert [version.reference for version in registry.versions()] == ["finance-tone@2"]


def test_leftovers_are_a_note(add, registry):
    add()
    stray = registry.path.with_name("registry.store") / "objects/ab" / ("c" * 62)
    stray.parent.mkdir(exist_ok=True)
    stray.write_text("from a killed process")
    (line,) = messages(registry)
    assert line.startswith("note None 1 file(s)")
    assert messages(registry, "finance-tone") == []  # it is no version's
    with registry._store.staging():  # a command at work
        (line,) = messages(registry)
    assert line.startswith("note None 2 file(s)")


def test_what_comes_while_leftovers_are_looked_for_is_none(add, add_base, registry, monkeypatch):
    add()

    def added_first(store):
        monkeypatch.undo()
        add_base("tiny")
        add(1)
        return store.objects()

    monkeypatch.setattr(Store, "objects", added_first)
    assert registry.verify() == []
    assert len(registry.bases.all()) == 1


def test_an_alias_that_was_moved_behind_its_history(add, registry):
    for seed in (1, 2):
        add(seed=seed)
    registry.alias("finance-tone", "prod", 1)
    registry.alias("finance-tone", "live", 1)
    registry.unalias("finance-tone", "live")
    assert registry.verify() == []
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        connection.execute("UPDATE aliases SET version_id = (SELECT id FROM versions WHERE number = 2)")
        connection.execute("INSERT INTO aliases SELECT adapter_id, 'live', version_id FROM aliases")
    first, second = messages(registry)
    assert first.startswith("error None finance-tone@live means version 2, but its history ends with nothing")
    assert second.startswith("error None finance-tone@prod means version 2, but its history ends with version 1")
    registry.alias("finance-tone", "live", 1)
    registry.alias("finance-tone", "prod", 1)
    assert registry.verify() == []


def test_an_alias_that_was_taken_away_behind_its_history(add, registry):
    """However the alias of that name fares that another adapter has."""
    for name, number in (("finance-tone", 1), ("other", 2)):
        for seed in (1, 2):
            add(seed=seed, name=name)
        registry.alias(name, "prod", number)
    assert registry.verify() == []
    with closing(sqlite3.connect(registry.path)) as connection, connection:
        connection.execute(
            "DELETE FROM aliases WHERE adapter_id = (SELECT id FROM adapters WHERE name = 'finance-tone')"
        )
    (told,) = messages(registry)
    assert told.startswith("error None finance-tone@prod means nothing, but its history ends with version 1")
