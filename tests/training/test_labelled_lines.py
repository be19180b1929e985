"""Lines that begin with their labels: fastText's and TREC's."""

from __future__ import annotations

import gzip

import pytest

from lorary.hub.errors import DataError, RecipeError, UsageError
from lorary.hub.manifest import MULTI_LABEL
from lorary.training.advisor.guess import guess_task
from lorary.training.data.files.source import read_source

COARSE, FINE = {"text": "text", "label": "coarse_label"}, {"text": "text", "label": "fine_label"}


@pytest.fixture
def load(load_file):
    """``load(name, content, **settings)``: the rows of such a file in its order, its problem type, and notes."""

    def load(name, content, **settings):
        data, notes = load_file(name, content, **settings)
        rows = sorted(data.train + data.test, key=lambda row: int(row.place.rpartition(" ")[2]))
        return [(row.values["text"], row.values["label"]) for row in rows], data.problem_type, notes

    return load


def problems(caught):
    return [problem.rpartition("/")[2] for problem in caught.value.problems]


ONE = '__label__pos Fine , "so" it is\n\n__label__neg  Bad\u2028thing\r\n__label__pos\tNA\n__label__neg no\n'
SEVERAL = "__label__a __label__b-c which\n__label__a one\n__label__d two\n__label__a three\n"


@pytest.mark.parametrize("name", ["train.ft.txt", "train.txt.gz", "train.label"])
def test_lines_of_fasttext_have_their_labels_first(name, load):
    content = gzip.compress(ONE.encode()) if name.endswith("gz") else ONE
    rows, problem, _ = load(name, content)
    assert rows == [('Fine , "so" it is', "pos"), ("Bad\u2028thing", "neg"), ("NA", "pos"), ("no", "neg")]
    assert problem == "single_label_classification"


def test_one_line_of_several_labels_makes_all_of_them_lists(load, tmp_path):
    rows, problem, notes = load("a.txt", SEVERAL)
    assert rows == [("which", ["a", "b-c"]), ("one", ["a"]), ("two", ["d"]), ("three", ["a"])]
    assert problem == MULTI_LABEL
    assert any(note.startswith("1 of 4 lines have several labels: multi-label") for note in notes)
    # Where none has, another file or the recipe may say so.
    (tmp_path / "b.txt").write_text("__label__d four\n__label__a five\n")
    rows, _, _ = load("a.txt", SEVERAL, **{"data.test": str(tmp_path / "b.txt")})
    assert rows[0:2] == [("which", ["a", "b-c"]), ("four", ["d"])]
    rows, _, _ = load("b.txt", "__label__d four\n__label__a five\n__label__a six\n", problem_type=MULTI_LABEL)
    assert rows[0] == ("four", ["d"])


def test_labels_behind_the_text_are_labels_too_as_fasttext_has_it(load):
    lines = "__label__a one __label__b\ntwo __label__a words\n__label__b\tsays __label__ or x__label__a\n"
    rows, _, _ = load("a.txt", lines + "__label__b __label__b three\n")
    assert rows == [
        ("one", ["a", "b"]), ("two words", ["a"]), ("says __label__ or x__label__a", ["b"]), ("three", ["b"]),
    ]  # fmt: skip


def test_a_label_that_is_set_to_be_the_only_one_is(load):
    with pytest.raises(
        DataError, match=r"row 1, label: expected a label's name or number, found \['a', 'b-c'\]; .* problem_type"
    ):
        load("a.txt", SEVERAL, problem_type="single_label_classification")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("no label", "row 2, label: expected a label's name or number, found nothing"),
        ("__label__a", "row 2, text: is empty"),
        ("__label__ text", "row 2, label: is empty"),
    ],
)
def test_a_line_that_lacks_its_label_or_its_text_is_told(line, problem, load):
    content = f"__label__a one\n{line}\n__label__b two\n"
    with pytest.raises(DataError) as caught:
        load("a.txt", content)
    assert problems(caught) == [f"a.txt, {problem}"]
    assert load("a.txt", content + "__label__a x\n", **{"data.incomplete": "drop"})[0][1] == ("two", "b")


TREC = "DESC:manner How did it go ?\nENTY:cremat What is a caf\xe9 ?\nDESC:def What 's that ?\n".encode("latin-1")


def test_lines_of_trec_have_a_coarse_and_a_fine_label(load):
    latin = {"data.encoding": "latin-1"}
    for columns, labels in ((COARSE, ["DESC", "ENTY", "DESC"]), (FINE, ["DESC:manner", "ENTY:cremat", "DESC:def"])):
        for name in ("train_5500.label", "train_5500.txt"):
            rows, _, _ = load(name, TREC, **latin, **{"data.columns": dict(columns)})
            assert rows == list(zip(["How did it go ?", "What is a caf\xe9 ?", "What 's that ?"], labels, strict=True))
    with pytest.raises(DataError) as caught:
        load("a.label", TREC, **latin)
    assert problems(caught)[1:] == [
        "the rows look like TREC's; set data.columns to {label: coarse_label} or {label: fine_label}"
    ]
    with pytest.raises(DataError, match=r"row 2: expected a label such as DESC:manner before the text, found 'no'"):
        load("a.label", "DESC:def one\nno\n", **{"data.columns": dict(COARSE)})
    with pytest.raises(DataError, match=r"row 2: not UTF-8 text .* set data\.encoding \(such as latin-1\)"):
        load("a.label", TREC)


def test_other_lines_are_told_how_they_are_read(load):
    with pytest.raises(DataError) as caught:
        load("a.txt", "ham\tGo on\nspam\tFree\n")
    assert problems(caught) == [
        "row 1: expected labels before the text, __label__name as fastText has them or DESC:manner as TREC, found "
        "'ham\\tGo on'; with tabs between a label and its text, name the file .tsv and its columns with data.header"
    ]


def test_settings_and_tasks_of_such_files(make_recipe, tmp_path):
    path = tmp_path / "a.txt"
    with pytest.raises(RecipeError, match=r"no such file"):
        make_recipe(**{"data.train": str(path), "data.test": None})
    path.write_text(ONE)
    for task, name, problem in (
        ("summarization", "a.txt", "its rows need columns"), ("text-classification", "a.md", "isn't one of"),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=problem):
            make_recipe(task, **{"data.train": str(tmp_path / name), "data.test": None})
    with pytest.raises(UsageError, match="--task text-classification where its lines begin with their labels"):
        guess_task(str(path))
    assert read_source(str(path)).rows[0].values == {"text": 'Fine , "so" it is', "label": "pos"}
