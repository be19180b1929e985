"""Bad files of every kind: one clear error that names the file and the place in it, and nothing left behind."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import signal
import zipfile
from contextlib import contextmanager

import pyarrow
import pyarrow.parquet
import pytest

from lorary.hub.cli.main import main
from samples import question_rows, tag_rows, tone_rows

CLASSIFY, TAG, ANSWER = "text-classification", "token-classification", "question-answering"
LINES = "".join(f"{json.dumps(row)}\n" for row in tone_rows(12))
WRONG = {"text": "profit rose", "label": "good"}


def lines(*rows):
    """Good rows, then these: the first of them is row 13."""
    return LINES + "".join(row if isinstance(row, str) else f"{json.dumps(row)}\n" for row in rows)


def table(rows):
    """The rows of a task, the last one as given."""
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def parquet(columns):
    buffer = io.BytesIO()
    names = [name for name, _ in columns]
    pyarrow.parquet.write_table(pyarrow.table([values for _, values in columns], names=names), buffer)
    return buffer.getvalue()


def zipped(text):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("rows.jsonl", text)
    return buffer.getvalue()


def misplaced():
    rows = question_rows(6)
    return [*rows, {**rows[0], "answers": {"text": ["nowhere"], "answer_start": [3]}}]


GOOD_PARQUET = parquet([("text", [row["text"] for row in tone_rows(12)]), ("label", ["good", "bad"] * 6)])

# name of the file, its content, what the error says; then the task and settings where these are others.
FILES = {
    "empty": ("a.jsonl", "", "a.jsonl: 1 problem - holds no rows"),
    "blank": ("a.jsonl", "\n  \n\t\n", "a.jsonl: 1 problem - holds no rows"),
    "only a byte order mark": ("a.jsonl", b"\xef\xbb\xbf", "a.jsonl: 1 problem - holds no rows"),
    "empty JSON": ("a.json", "", "a.json: 1 problem - holds no rows"),
    "JSON without rows": ("a.json", "[]", "a.json: 1 problem - holds no rows"),
    "empty CSV": ("a.csv", "", "a.csv: 1 problem - holds no rows"),
    "only a header": ("a.csv", "text,label\n", "a.csv: 1 problem - holds no rows"),
    "empty Parquet": ("a.parquet", b"", "a.parquet: 1 problem - not a readable Parquet file"),
    "Latin-1": ("a.jsonl", lines({"text": "x"}).encode() + b'{"text": "caf\xe9"}\n', "row 14: not UTF-8 text (byte"),
    "UTF-16": ("a.jsonl", LINES.encode("utf-16"), "a.jsonl: 1 problem - row 1: not UTF-8 text but UTF-16 text"),
    "UTF-16 without a mark": ("a.jsonl", LINES.encode("utf-16-le"), "row 1: holds a NUL byte"),
    "UTF-16 CSV": ("a.csv", "text,label\nx,y\n".encode("utf-16"), "not UTF-8 text but UTF-16 text"),
    "NUL bytes": ("a.csv", "text,label\nprofit,good\nl\0ss,bad\n", "row 3: holds a NUL byte"),
    "zeros": ("a.jsonl", bytes(4096), "row 1: holds a NUL byte"),
    "truncated JSONL": ("a.jsonl", LINES[:-20], "row 12: not valid JSON"),
    "truncated JSON": ("a.json", json.dumps(tone_rows(9))[:-30], "a.json: 1 problem - not valid JSON"),
    "truncated CSV": ("a.csv", 'text,label\nprofit,good\n"loss,bad\n', "row 3: not valid CSV"),
    "Python in place of JSON": ("a.jsonl", lines("{'text': 'a', 'label': 'b'}\n"), "row 13: not valid JSON"),
    "deeply nested": ("a.jsonl", lines("[" * 100_000 + "\n"), "row 13: not valid JSON"),
    "a huge number": ("a.jsonl", lines('{"text": "a", "label": ' + "9" * 5000 + "}\n"), "row 13: not valid JSON"),
    "a scalar among rows": ("a.json", json.dumps([*tone_rows(4), 7]), "row 5: expected an object with columns, found"),
    "a list as a row": ("a.jsonl", lines(["a", "b"]), "row 13: expected an object with columns, found list"),
    "an object in place of rows": ("a.json", json.dumps({"rows": []}), "expected a list of rows, found dict"),
    "a key twice": ("a.jsonl", lines('{"text": "a", "text": "b", "label": "good"}\n'), "row 13: the key 'text' stands"),
    "a key twice in a message": (
        "a.json", '[{"a": 1}, {"messages": [{"role": "user", "content": "a", "content": "b"}]}]',
        "a.json, row 2: the key 'content' stands twice; keep one of them",
    ),
    "ragged CSV": (
        "a.csv",
        "text,label\nx,y\na,b,c\nd\n",
        "row 3: 3 cells, the header has 2; quote commas - a.csv, row 4: 1",
    ),
    "semicolons": ("a.csv", 'text;label\n"a";b\nc;d;e\n', "row 3: 3 cells, the header has 2; quote semicolons"),
    "tabs": ("a.csv", "text\tlabel\na\tb, c\n", "label'); name the file .tsv"),
    "commas": ("a.tsv", "text,label\na,b\n", "expected tabs between columns, found commas ('text,label'); name"),
    "ragged TSV": ("a.tsv", 'text\tlabel\n"x\ty\na\tb\tc\n', "rows: 1 problem - a.tsv, row 3: 3 cells, the header has"),
    "duplicated columns": ("a.csv", "text,label,text\na,b,c\n", "row 1: the header names 'text' twice"),
    "duplicated Parquet columns": ("a.parquet", parquet([("text", ["a"]), ("text", ["b"])]), "two columns 'text'"),
    "missing column": ("a.jsonl", table([{"txt": "a", "label": "b"}] * 3), "a.jsonl: no column 'text' (for text)"),
    "missing value": ("a.jsonl", lines({"text": "only"}), "a.jsonl, row 13, label: missing; the row has text"),
    "a number as text": ("a.jsonl", lines({**WRONG, "text": 7}), "row 13, text: expected a text, found 7"),
    "an empty text": ("a.jsonl", lines({**WRONG, "text": " \n"}), "row 13, text: is empty"),
    "bytes in Parquet": (
        "a.parquet", parquet([("text", [b"\xff", b"a"]), ("label", ["x", "y"])]), "row 1, text: expected a text, found"
    ),
    "null": ("a.jsonl", lines({**WRONG, "label": None}), "row 13, label: expected a label's name or number, found"),
    "NaN label": ("a.jsonl", lines('{"text": "a", "label": NaN}\n'), "row 13, label: expected a label's name"),
    "infinite number": (
        "a.jsonl", table([{"text": "a", "label": value} for value in (0.5, 1.5, float("inf"))]),
        "row 3, label: expected a finite number, found inf", CLASSIFY, "problem_type=regression",
    ),
    "one class": ("a.jsonl", table([WRONG] * 12), "a.jsonl: every training row has the label good; expected"),
    "half a character": ("a.jsonl", lines('{"text": "\\ud83d", "label": "good"}\n'), "row 13, text: holds half of a"),
    "damaged Parquet": ("a.parquet", GOOD_PARQUET[:-40], "a.parquet: 1 problem - not a readable Parquet file"),
    "Parquet with damaged pages": (
        "a.parquet", GOOD_PARQUET[:4] + bytes(80) + GOOD_PARQUET[84:], "a.parquet: 1 problem - not a readable Parquet"
    ),
    "gzip": ("a.jsonl", gzip.compress(LINES.encode(), mtime=0), "not UTF-8 text but gzip-compressed; end its name in"),
    "zip": ("a.jsonl", zipped(LINES), "not UTF-8 text but a zip archive; unpack it"),
    "pickle": ("a.jsonl", pickle.dumps(tone_rows(3)), "not UTF-8 text but a pickle, which is never read"),
    "Parquet as JSONL": ("a.jsonl", GOOD_PARQUET, "not UTF-8 text but a Parquet file; name it .parquet"),
    "pickle as Parquet": ("a.parquet", pickle.dumps(tone_rows(3)), "not a readable Parquet file"),
    "a gigantic line": ("a.jsonl", lines("x" * 5_000_000), "row 13: not valid JSON"),
    "a gigantic CoNLL line": ("a.conll", "x" * 5_000_000, "row 1: expected a word and its tag, found 'xxx", TAG),
    "a word without a tag": ("a.conll", "Anna B-PER\nsang\n", "row 2: expected a word and its tag", TAG),
    "tokens without tags": (
        "a.jsonl", table([*tag_rows(6), {"tokens": ["a", "b"], "tags": ["O"]}]), "row 7: 2 tokens but 1 tags", TAG
    ),
    "broken BIO": (
        "a.jsonl", table([*tag_rows(6), {"tokens": ["a", "b"], "tags": ["O", "I-PER"]}]), "a.jsonl, row 7", TAG,
        "data.broken_tags=error",
    ),
    "answers that aren't there": ("a.jsonl", table(misplaced()), "a.jsonl, row 7", ANSWER),
    "capitals": ("A.CSV", "text,label\nx,y\na,b,c\n", "rows: 1 problem - A.CSV, row 3: 3 cells, the header has 2"),
    "an unknown kind of file": ("a.xlsx", "PK", "'a.xlsx' isn't one of .jsonl, .json, .csv, .tsv"),
}  # fmt: skip


@contextmanager
def at_most(seconds):
    """An error where something waits for a pipe's other end, or reads what has no end."""

    def stop(number, frame):
        raise AssertionError(f"not done after {seconds} seconds")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture
def refused(bases, tmp_path, monkeypatch, capsys):
    """Runs a command on a file here: its error, on one line, after a look at what is left."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORARY_REGISTRY", str(tmp_path / "registry.db"))

    def refused(command, data, *more):
        before = sorted(tmp_path.rglob("*"))
        with at_most(60):
            code = main([command, "--data", data, *more])
        out, err = capsys.readouterr()
        assert code in (1, 2), err
        assert not out
        err = err[err.index("lorary: error: ") :]  # the bar stands before it
        assert err.count("lorary: error") == 1
        assert "error: unexpected" not in err
        assert "Traceback" not in err
        assert max(map(len, err.splitlines())) < 500
        assert sorted(tmp_path.rglob("*")) == before
        return " ".join(err.split())

    return refused


@pytest.fixture
def train(refused, bases):
    def train(data, task=CLASSIFY, *settings):
        base = ["--base", bases("bert"), "--name", "tone", "--domain", "finance", "--task", task, "--device", "cpu"]
        sets = [word for setting in settings for word in ("--set", setting)]
        return refused("train", data, *base, *sets)

    return train


@pytest.mark.parametrize("kind", FILES)
def test_a_bad_file_is_one_error_and_leaves_nothing(kind, train, tmp_path):
    name, content, message, *task = FILES[kind]
    (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
    found = train(name, *task)
    assert name in found
    assert message in found


def test_a_row_that_cant_be_read_hides_no_mistake_of_the_others(train, tmp_path):
    rows = ['{"text": "", "label": "good"}', '{"text": "a"}', '{"text": "a", "label": "goood"}', '{"text": 1,']
    (tmp_path / "a.jsonl").write_text("\n".join([*LINES.splitlines(), *rows]) + "\n")
    (tmp_path / "b.jsonl").write_text('{"text": "a"\n{"text": "a", "label": "unheard"}\n')
    count = len(LINES.splitlines())
    found = train("a.jsonl", CLASSIFY, "data.test=b.jsonl", "data.labels=[good, bad]")
    problems = found.removeprefix("lorary: error: data: 6 problems - ").split(" - ")
    for problem, expected in zip(
        problems,
        [
            f"a.jsonl, row {count + 4}: not valid JSON (",
            f"a.jsonl, row {count + 1}, text: is empty",
            f"a.jsonl, row {count + 2}, label: missing; the row has text",
            f"a.jsonl, row {count + 3}, label: unknown label 'goood'; data.labels has good, bad; did you mean 'good'?",
            "b.jsonl, row 1: not valid JSON (",
            "b.jsonl, row 2, label: unknown label 'unheard'; data.labels has good, bad",
        ],
        strict=True,
    ):
        assert problem.startswith(expected)


def test_a_row_that_cant_be_read_hides_no_missing_column(train, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "lable": "good"}\n{"text"\n')
    found = train("a.jsonl")
    assert "columns: 2 problems - a.jsonl, row 2: not valid JSON (" in found
    assert "a.jsonl: no column 'label' (for label); there are lable, text; did you mean 'lable'?" in found


def test_rows_that_cant_be_read_are_left_out_of_nothing(train, tmp_path):
    """Where the others are right, too, and where labels are read from them."""
    (tmp_path / "a.jsonl").write_text(LINES + '{"text"\n')
    assert "rows: 1 problem - a.jsonl, row" in train("a.jsonl")
    (tmp_path / "a.jsonl").write_text('{"text": "a", "x": 1, "y": 0}\n{"text": "b", "x": 2, "y": 0}\n{"text"\n')
    found = train("a.jsonl", CLASSIFY, "data.label_columns=[x, y]")
    assert "rows: 2 problems - a.jsonl, row 3: not valid JSON (" in found
    assert "a.jsonl, row 2, x: expected 0 or 1, found 2" in found


def test_bad_held_out_rows_are_named_by_their_file(train, tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "b.jsonl").write_text(table([WRONG, {"text": "a", "label": "unheard"}]))
    assert "b.jsonl, row 2, label: unknown label 'unheard'" in train("a.jsonl", CLASSIFY, "data.test=b.jsonl")
    (tmp_path / "b.jsonl").write_bytes(b"\xff")
    assert "b.jsonl: 1 problem - row 1: not UTF-8" in train("a.jsonl", CLASSIFY, "data.test=b.jsonl")


def test_a_base_that_cannot_be_loaded_leaves_nothing(refused, tmp_path):
    (tmp_path / "a.jsonl").write_text(LINES)
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text("{")
    words = ["--name", "tone", "--domain", "finance", "--task", CLASSIFY]
    assert "./base" in refused("train", "a.jsonl", *words, "--base", "./base")
    assert "nobody/nothing" in refused("train", "a.jsonl", *words, "--base", "nobody/nothing")


PLACES = {
    "missing": (lambda path: None, "no such file 'rows.jsonl'"),
    "dangling": (lambda path: path.symlink_to("gone.jsonl"), "no such file 'rows.jsonl'"),
    "loop": (lambda path: path.symlink_to("rows.jsonl"), "no such file 'rows.jsonl'"),
    "pipe": (os.mkfifo, "rows.jsonl: 1 problem - is a pipe (FIFO), expected a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "rows.jsonl: 1 problem - is a device, expected a file"),
    "folder": (lambda path: path.mkdir(), "rows.jsonl"),
}


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_what_is_no_file_is_not_waited_for(command, kind, train, refused, tmp_path):
    make, message = PLACES[kind]
    make(tmp_path / "rows.jsonl")
    if command == "train":
        found = train("rows.jsonl")
    else:
        found = refused("pretrain", "rows.jsonl", "--name", "village", "--architecture", "bert")
    assert message in found


@pytest.mark.parametrize("data", ["/dev/zero", "/dev/stdin", "/proc/self/mem"])
def test_a_device_is_no_data(data, train):
    assert data in train(data)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "a.txt: 1 problem - holds no text but blank lines"),
        (b"one\n\n\xff\n", "a.txt, line 3: not UTF-8 text (byte 5)"),
        ("ein Text".encode("utf-16"), "a.txt, line 1: not UTF-8 text but UTF-16 text"),
        (b"one\n\nt\0o\n", "a.txt, line 3: holds a NUL byte"),
        (gzip.compress(b"one", mtime=0), "a.txt, line 1: not UTF-8 text but gzip-compressed"),
        (b"one\n", "too few to split"),
    ],
)
def test_bad_text_leaves_nothing_either(content, message, refused, tmp_path):
    (tmp_path / "a.txt").write_bytes(content)
    assert message in refused("pretrain", "a.txt", "--name", "village", "--architecture", "llama")


@pytest.mark.parametrize("name", ["text.txt", "rows.csv"])
def test_a_line_as_long_as_it_likes_is_a_text_like_others(name, tmp_path):
    from lorary.training.data.files.source import read_source
    from lorary.training.data.files.text import read_text

    text = "profit " * 100_000
    (tmp_path / name).write_text(text if name == "text.txt" else f"text,label\n{text},good\n")
    path = str(tmp_path / name)
    source = read_text(path, None, lambda line: None) if name == "text.txt" else read_source(path)
    assert source.rows[0].values["text"].strip() == text.strip()
