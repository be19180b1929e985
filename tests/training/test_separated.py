"""CSV and TSV files: what stands between their cells, and when a double quote is more than a letter."""

from __future__ import annotations

import csv
import gzip
import io

import pytest

from lorary.hub.errors import DataError
from lorary.training.data import load_data
from lorary.training.data.files.source import read_source
from lorary.training.data.labels.problem import find_problem

ROWS = [{"text": 'a, "quoted"\nline', "label": "x"}, {"text": "tab\there; and", "label": "y"}]


@pytest.fixture
def read(tmp_path):
    """Reads a file of this name and content: its rows by their number, or the problems with it."""

    def read(name, content):
        path = tmp_path / name
        path.write_bytes(content.encode())
        try:
            source = read_source(str(path))
        except DataError as error:
            return list(error.problems)
        if source.unread:
            return list(source.unread)
        return {int(row.place.rpartition(" ")[2]): tuple(row.values.values()) for row in source.rows}

    return read


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL])
def test_what_the_csv_module_writes_is_read_back(name, delimiter, quoting, read):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, ["text", "label"], delimiter=delimiter, quoting=quoting)
    writer.writeheader()
    writer.writerows(ROWS)
    assert list(read(name, "\ufeff" + text.getvalue()).values()) == [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize(
    "text",
    [
        '"no\tto',
        '"no" he said\tto',
        '"\tto',
        '"no" "yes"\tto',
    ],
)
def test_quotes_of_a_tsv_file_that_are_not_paired_are_letters(text, read):
    content = f'text\tlabel\nbefore\tx\n{text}\n"whole"\ty\nafter\tz\n'
    assert read("a.tsv", content) == {
        2: ("before", "x"), 3: tuple(text.split("\t")), 4: ('"whole"', "y"), 5: ("after", "z"),
    }  # fmt: skip


def test_a_quote_that_another_row_happens_to_close_swallows_no_rows(read):
    found = read("a.tsv", 'text\tlabel\n"no\tx\nyes"\ty\nafter\tz\n')
    assert found == {2: ('"no', "x"), 3: ('yes"', "y"), 4: ("after", "z")}


def test_a_quote_within_a_cell_is_a_letter_as_it_is_in_csv(read):
    for mark, name in (("\t", "a.tsv"), (",", "a.csv")):
        assert read(name, f'text{mark}label\nhe said "no{mark}x\n"yes"{mark}y\n') == {
            2: ('he said "no', "x"),
            3: ("yes", "y"),
        }


def test_a_cell_of_several_lines_stays_one(read):
    assert read("a.tsv", 'text\tlabel\n"one\n\ntwo"\tx\nafter\tz\n') == {4: ("one\n\ntwo", "x"), 5: ("after", "z")}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("text\tlabel\na\tb\nc\n", "row 3: 1 cells, the header has 2; expected a tab between cells and none in them"),
        ("text\tlabel\na\tb\tc\n", "row 2: 3 cells, the header has 2; expected a tab between cells and none in them"),
        ('text\tlabel\n"a\tb\nc\n', "row 3: 1 cells, the header has 2; expected a tab between cells and none in them"),
        ("text\ttext\na\tb\n", "row 1: the header names 'text' twice"),
        ("text,label\na,b\n", "row 1: expected tabs between columns, found commas ('text,label'); name the file .csv"),
        ("text;label\na;b\n", "row 1: expected tabs between columns, found semicolons ('text;label'); name the file"),
        ("text\tlabel\n", "holds no rows; expected at least a few"),
        ("", "holds no rows; expected at least a few"),
        ("text\tlabel\na\0\tb\n", "row 2: holds a NUL byte, so it isn't UTF-8 text; save the file as UTF-8"),
    ],
)
def test_a_bad_tsv_file_is_one_problem(content, problem, read):
    (found,) = read("a.tsv", content)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (
            "text\tlabel\na\tb, c\n",
            "row 1: expected commas between columns, found tabs ('text\\tlabel'); name the file",
        ),
        ("text|label\na|b\n", "row 1: expected commas between columns, found bars ('text|label'); save the file with"),
        ("text;label\na;b;c\n", "row 2: 3 cells, the header has 2; quote semicolons"),
        ('text;label\n"a;b\n', "row 2: not valid CSV (unexpected end of data)"),
        ("text,label\na,b,c\n", "row 2: 3 cells, the header has 2; quote commas"),
    ],
)
def test_what_stands_between_the_cells_of_a_csv_file_is_told(content, problem, read):
    (found,) = read("a.csv", content)
    assert found.startswith(problem)


def test_semicolons_separate_cells_only_where_they_do_so_in_the_header(read):
    assert read("a.csv", '\n"text";label\na, b;x\n') == {3: ("a, b", "x")}
    assert read("a.csv", "text,label\na; b,x\n") == {2: ("a; b", "x")}
    assert read("a.csv", "text\na; b\n") == {2: ("a; b",)}


@pytest.mark.parametrize(
    ("first", "mark"),
    [
        ("sep=;", ";"), ("sep=,", ","), ("SEP=|", "|"), ('"sep=;"', ";"), ("sep=\t", "\t"), ("sep=^", "^"),
        ("sep=; ", ";"), ("\ufeffsep=;", ";"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_first_line_as_excel_has_it_names_what_stands_between_cells(first, mark, end, read):
    other = "1,5" if mark != "," else "1;5"
    lines = [first, f'"text"{mark}label', f'"a{mark} b"{mark}x', "", f"{other}{mark}y"]
    found = read("a.csv", end.join(lines) + end)
    assert found == {3: (f"a{mark} b", "x"), 5: (other, "y")}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("sep=;\ntext;label\na;b\nc\n", "row 4: 1 cells, the header has 2; quote semicolons"),
        ("sep=|\ntext|label\na|b|c\n", "row 3: 3 cells, the header has 2; quote each '|' in a cell"),
        ("sep=;\ntext;text\na;b\n", "row 2: the header names 'text' twice"),
        (
            "sep=;\ntext,label\na,b\n",
            "row 2: expected semicolons between columns (row 1: 'sep=;'), found commas ('text,label'); mend row 1",
        ),
        (
            "sep=^\ntext,label\na,b\n",
            "row 2: expected '^' between columns (row 1: 'sep=^'), found commas ('text,label'); mend row 1",
        ),
        ("sep=\ntext;label\na;b\n", "row 1: expected one sign behind sep=, as in sep=;, found 'sep='"),
        ("sep=;;\ntext;label\na;b\n", "row 1: expected one sign behind sep=, as in sep=;, found 'sep=;;'"),
        ('sep="\ntext;label\na;b\n', "row 1: expected one sign behind sep=, as in sep=;, found 'sep=\"'"),
        ("sep=a\ntext;label\na;b\n", "row 1: expected one sign behind sep=, as in sep=;, found 'sep=a'"),
        ("sep=;\n", "holds no rows; expected at least a few"),
        ("sep=;", "holds no rows; expected at least a few"),
    ],
)
def test_what_is_wrong_below_such_a_line_is_told_by_the_files_own_rows(content, problem, read):
    (found,) = read("a.csv", content)
    assert found.startswith(problem)


def test_labels_with_a_decimal_comma_are_not_taken_for_names(make_recipe, tmp_path):
    (tmp_path / "a.csv").write_text("text;label\none;4\ntwo;3,5\nthree;0,25\n")
    recipe = make_recipe(**{"data.train": str(tmp_path / "a.csv")})
    source = read_source(recipe.data.train)
    with pytest.raises(DataError, match=r"look like numbers with a decimal comma \('3,5'\); write them with a point"):
        find_problem(recipe, source, lambda line: None)
    names = recipe.model_copy(update={"problem_type": "single_label_classification"})
    assert find_problem(names, source, lambda line: None) == "single_label_classification"


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_numbers_as_labels_are_told_from_names(name, make_recipe, tmp_path):
    mark = "," if name == "a.csv" else "\t"
    (tmp_path / name).write_text(f"text{mark}label\none{mark}0.5\ntwo{mark}1\n")
    recipe = make_recipe(**{"data.train": str(tmp_path / name)})
    assert find_problem(recipe, read_source(recipe.data.train), lambda line: None) == "regression"


def test_classes_that_a_csv_file_has_as_decimal_numbers_are_whole(make_recipe, tmp_path):
    (tmp_path / "a.csv").write_text("text,label\none,0.0\ntwo,1.0\nthree,2.0\n")
    (tmp_path / "b.csv").write_text("text,label\nfour,2\n")
    files = {"data.train": str(tmp_path / "a.csv"), "data.test": str(tmp_path / "b.csv")}
    data = load_data(make_recipe(**files, problem_type="single_label_classification"))
    assert (data.labels, data.test[0].values["label"]) == (("0", "1", "2"), "2")
    data = load_data(make_recipe(**files, **{"data.labels": ("x", "y", "z")}))
    assert [row.values["label"] for row in (*data.train, *data.test)] == ["x", "y", "z", "z"]
    # Numbers of versions, and those with zeros before them, are names.
    for labels in ("1.0", "1.5", "2.0"), ("01", "1", "2"):
        (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{label},{label}\n" for label in labels))
        (tmp_path / "b.csv").write_text(f"text,label\nfour,{labels[0]}\n")
        assert set(load_data(make_recipe(**files, problem_type="single_label_classification")).labels) == set(labels)


def test_a_folder_of_tsv_files_is_read_unless_quotes_would_swallow_rows(read, tmp_path):
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / "train.tsv"
    path.write_text('text\tlabel\n"whole"\tx\nthe "middle"\ty\n')
    assert [row.values["text"] for row in read_source(str(path.parent)).rows] == ["whole", 'the "middle"']
    path.write_text('text\tlabel\n"no\tx\nyes"\ty\n')
    with pytest.raises(
        DataError, match=r"rows/train.tsv: 1 problem\n.*quote no cell, and a folder's would; name the file itself"
    ):
        read_source(str(path.parent))


@pytest.mark.parametrize("name", ["train.csv", "train.csv.gz"])
def test_a_folder_of_csv_files_with_semicolons_is_refused(tmp_path, name):
    """``datasets`` would make one column of them."""
    (tmp_path / "rows").mkdir()
    path = tmp_path / "rows" / name
    pack = gzip.compress if name.endswith(".gz") else bytes
    path.write_bytes(pack(b"text,label\na;b,x\n"))
    assert read_source(str(path.parent)).rows[0].values == {"text": "a;b", "label": "x"}
    path.write_bytes(pack(b"text;label\na;x\n"))
    with pytest.raises(DataError, match=rf"rows/{name}: 1 problem\n.*has semicolons .*; name the file itself"):
        read_source(str(path.parent))
    path.write_bytes(pack("\ufeffsep=,\ntext,label\na,x\n".encode()))
    with pytest.raises(DataError, match=rf"rows/{name}: 1 problem\n.*begins with 'sep=,', which .*; name the file it"):
        read_source(str(path.parent))
