"""Running text from files and folders: documents, their places, hashes, and every way in which a file can be wrong."""

from __future__ import annotations

import errno
import hashlib
import os

import pytest

from lorary.hub.errors import DataError, RecipeError
from lorary.training.data import load_data
from lorary.training.data.files.text import read_text


def read(path, sample_by=None):
    notes = []
    source = read_text(str(path), sample_by, notes.append)
    return [(row.values["text"], row.place.removeprefix(str(path))) for row in source.rows], source, notes


def test_paragraphs_of_a_file_are_its_documents(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("\ufeffOne\r\ntwo\r\n\r\n  \r\n\r\nDrei, größer".encode())
    rows, source, _ = read(path)
    assert rows == [("One\ntwo", ", line 1"), ("Drei, größer", ", line 6")]
    assert source.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("sample_by", "texts"),
    [("document", ["a\nb\n\nc"]), ("paragraph", ["a\nb", "c"]), ("line", ["a", "b", "c"])],
)
def test_what_a_document_is_can_be_chosen(tmp_path, sample_by, texts):
    path = tmp_path / "a.txt"
    path.write_text("\n\na\nb\n\nc\n\n")
    assert [text for text, _ in read(path, sample_by)[0]] == texts


def test_datasets_text_loader_finds_the_same_documents(tmp_path):
    from datasets import load_dataset

    path = tmp_path / "a.txt"
    path.write_text("a\nb\n\nc d\n\ne\n")
    for sample_by in ("line", "paragraph"):
        table = load_dataset(
            "text", data_files=str(path), sample_by=sample_by, split="train", cache_dir=str(tmp_path / sample_by)
        )
        theirs = [text.strip("\n") for text in table["text"] if text.strip()]
        assert [text for text, _ in read(path, sample_by)[0]] == theirs


def test_files_of_a_folder_are_its_documents(tmp_path):
    folder = tmp_path / "corpus"
    (folder / "sub").mkdir(parents=True)
    for name, text in {
        "b.md": "B\n\nb", "sub/a.txt": "A", "README.md": "about", ".hidden.txt": "h", "x.pdf": "p", "void.txt": "\n",
    }.items():  # fmt: skip
        (folder / name).write_text(text)
    rows, source, notes = read(folder)
    assert rows == [("B\n\nb", "/b.md"), ("A", "/sub/a.txt")]
    assert set(source.provenance()["files"]) == {"b.md", "sub/a.txt", "void.txt"}
    assert source.provenance()["files"]["sub/a.txt"] == hashlib.sha256(b"A").hexdigest()
    assert notes[0].startswith("3 files in corpus were left out (first: .hidden.txt)")
    (folder / "b.md").write_text("B\n\nc")
    assert read(folder)[1].sha256 != source.sha256
    assert [text for text, _ in read(folder, "paragraph")[0]] == ["B", "c", "A"]


def test_a_folder_of_notes_is_text_whatever_is_hidden_in_it(make_recipe, tmp_path):
    folder = tmp_path / "notes"
    (folder / ".obsidian").mkdir(parents=True)
    (folder / ".obsidian" / "app.json").write_text("{}")
    for name in ("a", "b", "c"):
        (folder / f"{name}.md").write_text(f"note {name}\n\nits second paragraph")
    settings = {"data.train": str(folder), "data.test": None}
    data = load_data(make_recipe("fill-mask", **settings))
    assert (len(data.train), len(data.test)) == (2, 1)
    for name in ("a", "b", "c"):
        (folder / f"{name}.md").rename(folder / f"{name}.txt")
    (folder / "index.json").write_text('[{"file": "a.txt"}]')
    with pytest.raises(DataError, match="text files would be rows, line by line; name a file of rows, or a folder"):
        load_data(make_recipe("fill-mask", **settings))


def test_a_folder_that_cannot_be_read_is_not_left_out(make_recipe, tmp_path, monkeypatch):
    (tmp_path / "notes" / "closed").mkdir(parents=True)
    for name in ("a", "b", "c"):
        (tmp_path / "notes" / f"{name}.txt").write_text(f"note {name}")
    listed = os.scandir

    def scandir(path):  # the tests may run as root, to whom nothing is closed
        if str(path).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"notes/closed: 1 problem\n.*can't be read: Permission denied"):
        make_recipe("fill-mask", **{"data.train": str(tmp_path / "notes"), "data.test": None})


def test_a_path_that_cannot_be_followed_is_told(make_recipe):
    with pytest.raises(DataError, match="can't be read: File name too long"):
        make_recipe("fill-mask", **{"data.train": "text " * 2000})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"fine\n\nna\xefve\n", r"a\.txt, line 3: not UTF-8 text \(byte 8\); save the file as UTF-8"),
        ("text".encode("utf-16"), r"a\.txt, line 1: not UTF-8 text"),
        (b"a\n\0\n", r"a\.txt, line 2: holds a NUL byte"),
        (b"", "holds no text but blank lines"),
        (b" \n\n\t\n", "holds no text but blank lines"),
    ],
)
def test_files_that_are_no_text_are_named(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read(tmp_path / "a.txt")


def test_every_bad_file_of_a_folder_is_named(tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(b"\xff")
    (tmp_path / "c.txt").write_text("fine")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    assert [problem.split(", line")[0] for problem in caught.value.problems] == [
        f"{tmp_path}/a.txt",
        f"{tmp_path}/b.txt",
    ]


def test_documents_are_split_with_the_seed_and_never_across(make_recipe, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n\n".join(f"document {n}\nits second line" for n in range(40)))
    settings = {"data.train": str(path), "data.test": None, "data.test_size": 0.25}

    def parts(seed):
        data = load_data(make_recipe("fill-mask", **settings, **{"training.seed": seed}))
        return [[example.values["text"] for example in part] for part in (data.train, data.test)]

    train, test = parts(1)
    assert (len(train), len(test)) == (30, 10)
    assert not set(train) & set(test)
    assert all(text.endswith("\nits second line") for text in train + test)
    assert parts(1) == [train, test]
    assert parts(2) != [train, test]


def test_one_document_cant_be_split(make_recipe, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("all in one")
    with pytest.raises(DataError, match="1 rows are too few to split"):
        load_data(make_recipe("fill-mask", **{"data.train": str(path), "data.test": None}))


def test_a_text_file_gives_text_generation_its_column(make_recipe, tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("a\n\nb\n\nc")
    recipe = make_recipe("text-generation", **{"data.train": str(path), "data.test": None})
    assert recipe.data.columns.named() == {"text": "text"}
    assert len(load_data(recipe).train) == 2


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("summarization", {"data.train": "{txt}"}, "isn't one of .jsonl.*its rows need columns"),
        ("text-generation", {"data.train": "{txt}", "data.columns.prompt": "p"}, "its rows need columns"),
        ("fill-mask", {"data.train": "{folder}/gone.txt"}, "no such file .*did you mean 'gone.md'"),
        ("fill-mask", {"data.train": "{folder}/empty"}, "is an empty folder"),
        ("fill-mask", {"data.sample_by": "line"}, r"how text files \(.txt, .md\) fall into documents, and there"),
        ("fill-mask", {"data.train": "{txt}", "data.sample_by": "page"}, "expected one of document, paragraph, line"),
        ("fill-mask", {"data.train": "{txt}", "data.subset": "en"}, "data.subset: only a dataset has one"),
        ("fill-mask", {"data.labels": ["a", "b"]}, "data.labels: fill-mask has no labels"),
        ("fill-mask", {"training.packing": True}, "training.packing: "),
        (
            "fill-mask",
            {"prompt.format": "plain"},
            "prompt.format: only text-generation, .* have a prompt",
        ),
        ("fill-mask", {"training.mlm_probability": 1.0}, "training.mlm_probability: expected a number below 1"),
        ("text-generation", {"training.mlm_probability": 0.3}, "training.mlm_probability: only fill-mask masks tokens"),
        ("text-classification", {"training.whole_word_mask": True}, "training.whole_word_mask: only fill-mask"),
        ("text-generation", {"strategy": "continual", "training.packing": True}, "fills blocks with documents anyway"),
        ("fill-mask", {"data.too_long": "error"}, "data.too_long: strategy 'continual' cuts documents into blocks"),
    ],
)
def test_settings_that_text_doesnt_have_are_refused(make_recipe, tmp_path, task, settings, message):
    for name in ("corpus.txt", "gone.md"):
        (tmp_path / name).write_text("text")
    (tmp_path / "empty").mkdir()
    stands = {"{txt}": str(tmp_path / "corpus.txt"), "{folder}": str(tmp_path)}
    for word, value in stands.items():
        settings = {key: text.replace(word, value) if isinstance(text, str) else text for key, text in settings.items()}
    with pytest.raises(RecipeError, match=message):
        make_recipe(task, **settings)
