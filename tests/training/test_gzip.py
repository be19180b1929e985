"""Data files that are compressed with gzip: read as what they hold; one clear error where they aren't whole."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import lzma
import re

import pytest

from lorary.hub.errors import DataError, RecipeError
from lorary.training.data import load_data
from lorary.training.data.files import gzipped
from lorary.training.data.files.source import read_source
from lorary.training.data.files.text import read_text
from lorary.training.pretraining import PretrainRecipe
from lorary.training.pretraining.corpus import load_corpus
from samples import tag_rows, tone_rows, write_jsonl

ROWS = tone_rows(9)
LINES = "".join(f"{json.dumps(row)}\n" for row in ROWS).encode()


def pretrain_recipe(**flags):
    return PretrainRecipe.from_flags({"name": "village", "architecture": "llama", **flags})


def pack(path, content):
    path.write_bytes(gzip.compress(content, mtime=0))
    return str(path)


def table(mark):
    return "".join(f"{mark.join(cells)}\n" for cells in [ROWS[0].keys(), *map(dict.values, ROWS)]).encode()


def parquet():
    import pyarrow
    from pyarrow.parquet import write_table

    write_table(pyarrow.Table.from_pylist(ROWS), made := pyarrow.BufferOutputStream())
    return made.getvalue().to_pybytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl.gz", LINES),
        ("a.JSONL.GZ", LINES),
        ("a.json.gz", json.dumps(ROWS).encode()),
        ("a.csv.gz", table(",")),
        ("a.tsv.gz", table("\t")),
        ("a.parquet.gz", parquet()),
    ],
)
def test_every_kind_of_file_is_read_with_its_own_hash(name, content, make_recipe, tmp_path):
    path = pack(tmp_path / name, content)
    source = read_source(path)
    assert [dict(row.values) for row in source.rows] == ROWS
    assert source.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    recipe = make_recipe(**{"data.train": path, "data.test": path.replace("a.", "./a.")})
    assert len(load_data(recipe).test) == 9


def test_words_and_their_tags_are_read(make_recipe, tmp_path):
    words = "\n\n".join("\n".join(map(" ".join, zip(row["tokens"], row["tags"], strict=True))) for row in tag_rows(6))
    path = pack(tmp_path / "a.conll.gz", words.encode())
    recipe = make_recipe("token-classification", **{"data.train": path, "data.test": None})
    assert load_data(recipe).labels == ("B-ORG", "I-ORG", "O")


def test_running_text_is_read_alone_and_in_folders(make_recipe, tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_text("one")
    path = pack(folder / "b.txt.gz", "\ufefftwo\r\n\r\nthree".encode())
    pack(folder / "c.md.gz", b"four")
    pack(folder / "README.md.gz", b"about")
    for sample_by, texts in ((None, ["one", "two\n\nthree", "four"]), ("line", ["one", "two", "three", "four"])):
        source = read_text(str(folder), sample_by, lambda line: None)
        assert [row.values["text"] for row in source.rows] == texts
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    assert source.files == {name: value for name, value in hashes.items() if name != "README.md.gz"}
    alone = read_text(path, None, lambda line: None)
    assert [(row.values["text"], row.place[-6:]) for row in alone.rows] == [("two", "line 1"), ("three", "line 3")]
    assert alone.sha256 == hashes["b.txt.gz"]
    for data in (str(folder), path):
        found = load_data(make_recipe("fill-mask", **{"data.train": data, "data.test": None}))
        assert len(found.train) + len(found.test) == (3 if data != path else 2)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl.gz"])
def test_a_base_is_pretrained_on_it(name, tmp_path):
    content = b"one\n\ntwo\n\nthree" if name == "a.txt.gz" else LINES
    recipe = pretrain_recipe(**{"data.train": pack(tmp_path / name, content)})
    corpus = load_corpus(recipe, lambda line: None)
    assert len(corpus.train) + len(corpus.test) == (3 if name == "a.txt.gz" else 9)


def test_several_members_and_the_zeros_after_them_are_one_file(tmp_path):
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES) + gzip.compress(b"") + gzip.compress(LINES) + bytes(512))
    assert len(read_source(str(tmp_path / "a.jsonl.gz")).rows) == 18


PACKED = gzip.compress(LINES, mtime=0)
DAMAGED = "its gzip data are damaged, or something else stands behind them; copy or download it again"
WRONG = {
    "cut off": (PACKED[:-9], "its gzip data are cut off; copy or download it again"),
    "cut off in its header": (PACKED[:6], "its gzip data are cut off; copy or download it again"),
    "cut off in a later member": (PACKED + PACKED[:30], "its gzip data are cut off; copy or download"),
    "not packed": (LINES, "it isn't gzip-compressed, as its name says; take .gz off its name, or compress it"),
    "empty": (b"", "it isn't gzip-compressed, as its name says; take .gz off its name, or compress it"),
    "bzip2": (bz2.compress(LINES), "it isn't gzip-compressed, as its name says, but bzip2-compressed; unpack it, or"),
    "xz": (lzma.compress(LINES), "it isn't gzip-compressed, as its name says, but xz-compressed; unpack it, or"),
    "garbage behind": (PACKED + b"<html>", DAMAGED),
    "another sum": (PACKED[:-8] + bytes(4) + PACKED[-4:], DAMAGED),
    "another length": (PACKED[:-4] + bytes(4), DAMAGED),
    "damaged": (PACKED[:60] + bytes(9) + PACKED[69:], DAMAGED),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "folder/train.jsonl.gz", "texts/a.txt.gz"])
def test_what_is_not_whole_is_one_problem(kind, name, tmp_path):
    content, problem = WRONG[kind]
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    named = str(path.parent if path.parent != tmp_path else path)
    with pytest.raises(DataError) as caught:
        read_text(named, None, lambda line: None) if ".txt" in name else read_source(named)
    (found,) = caught.value.problems
    assert str(path) in str(caught.value)
    assert f"can't be read: {problem}" in found


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.txt.gz", "folder/train.jsonl.gz"])
def test_what_unpacks_without_end_is_refused(name, tmp_path, monkeypatch):
    monkeypatch.setattr(gzipped, "ALWAYS", 2**16)
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(gzip.compress(bytes(2**22)))
    named = str(path.parent if path.parent != tmp_path else path)
    with pytest.raises(
        DataError, match=r"it unpacks to more than 200 times its size.*; if that is meant, unpack it your"
    ):
        read_text(named, None, lambda line: None) if ".txt" in name else read_source(named)


def test_rows_that_pack_well_are_read(tmp_path):
    """A thousand equal rows pack a hundred times, and are no bomb."""
    assert len(read_source(pack(tmp_path / "a.jsonl.gz", LINES * 1000)).rows) == 9000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train.gz", "'train.gz' doesn't say what it holds; expected a name such as train.jsonl.gz"),
        ("train.rows.gz", "'train.rows.gz' isn't one of .jsonl, .json, .csv, .tsv, .parquet, .conll"),
        ("train.tar.gz", "'train.tar.gz' isn't one of .jsonl, .json, .csv, .tsv, .parquet, .conll"),
        ("train.jsonl.bz2", "'train.jsonl.bz2' is compressed in a way that isn't read; compress it with gzip (.gz)"),
        ("train.jsonl.xz", "'train.jsonl.xz' is compressed in a way that isn't read; compress it with gzip (.gz)"),
        ("train.csv.zst", "'train.csv.zst' is compressed in a way that isn't read; compress it with gzip (.gz)"),
        ("train.zip", "'train.zip' is compressed in a way that isn't read; compress it with gzip (.gz)"),
        ("train.jsonl.gz.gz", "'train.jsonl.gz.gz' isn't one of .jsonl, .json, .csv, .tsv, .parquet, .conll"),
        ("gone.jsonl.gz", "no such file 'gone.jsonl.gz'; did you mean 'train.jsonl.gz'?"),
    ],
)
@pytest.mark.parametrize("kind", ["train", "pretrain"])
def test_names_that_say_no_kind_are_refused(name, message, kind, make_recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / (name if "gone" not in name else "train.jsonl.gz")).write_bytes(b"")
    make = make_recipe if kind == "train" else pretrain_recipe
    with pytest.raises(RecipeError, match=re.escape(message)):
        make(**{"data.train": name})


def test_a_packed_file_has_no_splits(make_recipe, tmp_path):
    with pytest.raises(RecipeError, match=r"only a dataset has one; data.train is the file"):
        make_recipe(**{"data.train": pack(tmp_path / "a.jsonl.gz", LINES), "data.subset": "en"})


def test_labels_of_packed_tables_are_told_from_names(make_recipe, tmp_path):
    path = pack(tmp_path / "a.csv.gz", b"text,label\n" + b"".join(b"t%d,%d.5\n" % (n, n) for n in range(9)))
    assert load_data(make_recipe(**{"data.train": path, "data.test": None})).problem_type == "regression"


def test_a_folder_of_packed_rows_is_a_dataset(make_recipe, tmp_path):
    folder = tmp_path / "rows"
    folder.mkdir()
    pack(folder / "train.jsonl.gz", LINES)
    write_jsonl(folder / "test.jsonl", ROWS[:4])
    recipe = make_recipe(**{"data.train": str(folder), "data.test": None, "data.test_split": "test"})
    assert [len(part) for part in (load_data(recipe).train, load_data(recipe).test)] == [9, 4]


def test_a_folder_of_packed_parquet_is_refused_by_the_files_name(tmp_path):
    pack(tmp_path / "train.parquet.gz", parquet())
    with pytest.raises(
        DataError, match=r"train.parquet.gz: 1 problem\n.*and a folder's Parquet isn't unpacked; name the file itself"
    ):
        read_source(str(tmp_path))
