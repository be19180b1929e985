"""Rows of bases that can't be read, and what stands in the place of their files."""

import re
import sqlite3
from contextlib import closing

import pytest


def found(registry):
    return [f"{finding.level} {finding.reference} {finding.message}" for finding in registry.verify()]


@pytest.mark.parametrize(
    "damage",
    ["details = '{'", "details = NULL", "details = '[]'", "details = '{\"metrics\": {}, \"provenance\": 3}'",
     "parameters = 'many'", "parameters = 9e999", "digest = 'x'", "digest = x'00'"],
)  # fmt: skip
def test_a_damaged_row_of_a_base_is_told_and_hides_nothing(add, add_base, registry, damage):
    add()
    for name in ("a-base", "b-base", "c-base"):
        base = add_base(name)
    registry.checkpoint("finance-tone").files["adapter_model.safetensors"].unlink()
    (base.folder / "model.safetensors").unlink()
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute(f"UPDATE bases SET {damage} WHERE id = 'b-base'")
    version, *leftover, damaged, missing = found(registry)
    assert "finance-tone@1 adapter_model.safetensors: missing" in version
    assert re.match(r"error b-base .*(its row is|rows are) damaged.*; go back to a copy", damaged)
    assert "c-base base c-base: model.safetensors is missing" in missing
    assert [line.split(" in ")[0] for line in leftover] == (["note None 1 file(s)"] if "digest" in damage else [])


def test_a_base_with_a_file_of_an_infinite_size_is_told_and_hides_nothing(add_base, registry):
    for name in ("a-base", "b-base"):
        base = add_base(name)
    (base.folder / "model.safetensors").unlink()
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE base_files SET size = 9e999 WHERE base = 'a-base'")
    damaged, missing = found(registry)
    assert damaged.startswith("error a-base base 'a-base': its row is damaged")
    assert "b-base base b-base: model.safetensors is missing" in missing


def test_a_link_in_the_place_of_a_base_hides_nothing(add_base, registry, tmp_path):
    for name in ("a-base", "b-base"):
        base = add_base(name)
    (base.folder / "model.safetensors").unlink()
    folder = registry.bases.get("a-base").folder
    folder.rename(tmp_path / "moved")
    folder.symlink_to(tmp_path / "moved")
    link, missing = found(registry)
    assert re.match("error a-base .*is a link", link)
    assert "b-base base b-base: model.safetensors is missing" in missing
