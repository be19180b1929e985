"""Files that don't say how they are read: no names of columns, other separators and encodings, rows under a key."""

from __future__ import annotations

import json

import pytest

from lorary.hub.errors import DataError, RecipeError
from lorary.training.data import load_data

CLASSIFY, TAG = "text-classification", "token-classification"


@pytest.fixture
def load(make_recipe, tmp_path):
    """``load(name, content, **settings)``: all rows of such a file by their roles, in its order."""

    def load(name, content, task=CLASSIFY, **settings):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        recipe = make_recipe(task, **{"data.train": str(path), "data.test": None, **settings})
        data = load_data(recipe)
        rows = sorted(data.train + data.validation + data.test, key=lambda row: int(row.place.rpartition(" ")[2]))
        return [dict(row.values) for row in rows]

    return load


def problems(caught):
    return [problem.rpartition("/")[2] for problem in caught.value.problems]


AG_NEWS = '"3","Oil, again","Reuters - ""Up"" 2%"\n"4","Chips","AP - Down"\n"3","Steel","AP - Even"\n'


def test_a_csv_file_without_names_has_those_of_the_recipe_and_loses_no_row(load):
    rows = load("train.csv", AG_NEWS, **{"data.header": ("label", "title", "text")})
    assert rows == [
        {"text": 'Reuters - "Up" 2%', "label": "3"}, {"text": "AP - Down", "label": "4"},
        {"text": "AP - Even", "label": "3"},
    ]  # fmt: skip


def test_a_tsv_file_without_names_keeps_quotes_that_are_letters(load):
    content = 'gj04\t1\t\t"A\ngj04\t0\t*\tB" c\ngj04\t1\t\td\n'
    rows = load("train.tsv", content, **{"data.header": ("source", "label", "star", "text")})
    assert [(row["text"], row["label"]) for row in rows] == [('"A', "1"), ('B" c', "0"), ("d", "1")]


def test_a_file_without_names_says_how_they_are_given(load):
    with pytest.raises(DataError) as caught:
        load("train.csv", AG_NEWS)
    assert problems(caught)[-1] == "if the first row holds no names, name the columns with data.header, in order"
    with pytest.raises(DataError) as caught:
        load("train.csv", "sentence,label\na,b\nc,d\n")
    assert not any("data.header" in problem for problem in problems(caught))


def test_a_header_that_does_not_fit_is_told(load):
    with pytest.raises(DataError) as caught:
        load("train.csv", "text,label\na,b\nc,d,e\n", **{"data.header": ("text", "label")})
    assert problems(caught) == [
        "train.csv, row 1: names the columns already; leave data.header out",
        "train.csv, row 3: 3 cells, data.header has 2; quote commas",
    ]


def test_any_sign_may_separate_cells_in_any_encoding(load):
    content = '"Cafés", it said .@positive\nA "loss@negative\nNone@neutral\n'.encode("latin-1")
    settings = {"data.header": ("text", "label"), "data.separator": "@", "data.encoding": "latin-1"}
    rows = load("Sentences.csv", content, **settings)
    assert [row["text"] for row in rows] == ['"Cafés", it said .', 'A "loss', "None"]
    with pytest.raises(DataError) as caught:
        load("Sentences.csv", content, **{**settings, "data.encoding": "utf-8"})
    assert problems(caught) == [
        "row 1: not UTF-8 text (byte 4); save the file as UTF-8, or set data.encoding (such as latin-1)"
    ]


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16", "utf-16-le"])
def test_a_file_is_read_in_its_encoding(encoding, load):
    texts = [f"café {n}" for n in range(4)]
    lines = [json.dumps({"text": text, "label": text[-1]}, ensure_ascii=False) for text in texts]
    found = load("rows.jsonl", "\n".join(lines).encode(encoding), **{"data.encoding": encoding})
    assert [row["text"] for row in found] == texts


def test_running_text_is_read_in_its_encoding(load):
    content = "café\r\n\r\nnaïve\r\n".encode("cp1252")
    found = load("a.txt", content, "fill-mask", **{"data.encoding": "cp1252"})
    assert [row["text"] for row in found] == ["café", "naïve"]


CLINC = {
    "oos_train": [["what?", "oos"]], "train": [["pay it", "pay"], ["call", "call"], ["ring", "call"]],
    "test": [["pay now", "pay"]],
}  # fmt: skip


def test_a_json_object_of_splits_has_their_rows_by_name(make_recipe, tmp_path):
    path = tmp_path / "data_full.json"
    path.write_text(json.dumps(CLINC))
    settings = {"data.train": str(path), "data.test": None, "data.test_split": "test"}
    data = load_data(make_recipe(**settings, **{"data.header": ("text", "label")}))
    assert [dict(row.values) for row in data.test] == [{"text": "pay now", "label": "pay"}]
    assert len(data.train) == 3
    with pytest.raises(DataError) as caught:
        load_data(make_recipe(**settings))
    assert [problem.rpartition("; ")[2] for problem in problems(caught)] == [
        "the rows under 'train' are lists, whose columns are named with data.header"
    ]
    with pytest.raises(DataError, match=r"no rows under 'dev'; name their key with data\.train_split"):
        load_data(make_recipe(**settings | {"data.train_split": "dev"}, **{"data.header": ("text", "label")}))


def test_a_json_object_with_one_list_of_rows_is_that_list(load):
    rows = [{"text": f"text {n}", "label": n} for n in range(4)]
    found = load("rows.json", json.dumps({"version": "1.1", "labels": ["a", "b"], "data": rows}))
    assert [row["text"] for row in found] == [row["text"] for row in rows]


def test_lists_have_the_columns_of_the_header(load):
    lines = '["a", 0]\n["b", 1]\n["c"]\n{"text": "d"}\n'
    with pytest.raises(DataError) as caught:
        load("rows.jsonl", lines, **{"data.header": ("text", "label")})
    assert problems(caught) == [
        "rows.jsonl, row 3: expected a list of 2 values (data.header), found a list of 1",
        "rows.jsonl, row 4: expected a list of 2 values (data.header), found dict",
    ]
    with pytest.raises(DataError, match=r"row 1: .* found list; name its columns with data\.header"):
        load("rows.jsonl", '["a", 0]\n')


CONLL = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nsays VBZ B-VP O\n\nPeter NNP B-NP B-PER\n"


def test_a_header_names_the_columns_of_a_conll_file(load):
    names = {"data.header": ("tokens", "pos", "chunks", "ner")}
    found = load("a.conll", CONLL, TAG, **names, **{"data.columns": {"tags": "pos"}})
    assert [row["tags"] for row in found] == [["NNP", "VBZ"], ["NNP"]]
    with pytest.raises(DataError, match=r"row 3: expected 2 cells \(data\.header\), found 'EU NNP B-NP B-ORG'"):
        load("a.conll", CONLL, TAG, **{"data.header": ("tokens", "tags")})


def test_what_is_conllu_is_not_read_as_words_and_tags(load):
    line = "\t".join(["1", "Al", "Al", "PROPN", "NNP", "_", "0", "root", "_", "_"])
    with pytest.raises(DataError, match="looks like CoNLL-U"):
        load("a.conll", f"# text = Al\n{line}\n\n", TAG)


@pytest.mark.parametrize(
    ("name", "settings", "problem"),
    [
        ("a.csv", {"data.header": ()}, "data.header: the list is empty; name each column, in order"),
        ("a.csv", {"data.header": ("a", "b", "a")}, "data.header: 'a' is listed twice"),
        ("a.csv", {"data.separator": '"'}, "data.separator: expected one sign between cells"),
        ("a.csv", {"data.separator": "tab"}, """expected one sign between cells, such as "@" or "\\t", found 'tab'"""),
        ("a.csv", {"data.encoding": "latin-99"}, "data.encoding: Python knows no text encoding 'latin-99'"),
        ("a.csv", {"data.encoding": "rot13"}, "data.encoding: Python knows no text encoding 'rot13'"),
        ("a.jsonl", {"data.separator": ";"}, "data.separator: is said of .csv, .tsv, found"),
        ("a.parquet", {"data.header": ("a", "b")}, "data.header: is said of .csv, .tsv, .conll, .json, .jsonl, found"),
        (
            "a.parquet",
            {"data.encoding": "latin-1"},
            "data.encoding: is said of .csv, .tsv, .conll, .json, .jsonl, .label and",
        ),
    ],
)
def test_settings_that_files_have_no_use_for_are_told(name, settings, problem, make_recipe, tmp_path):
    (tmp_path / name).write_text("text,label\na,b\n")
    task = settings.pop("task", CLASSIFY)
    with pytest.raises(RecipeError) as caught:
        make_recipe(task, **{"data.train": str(tmp_path / name), "data.test": None, **settings})
    assert any(problem in told for told in caught.value.problems)


def test_running_text_has_no_encoding_of_wide_units(make_recipe, tmp_path):
    (tmp_path / "a.txt").write_text("text")
    settings = {"data.train": str(tmp_path / "a.txt"), "data.test": None, "data.encoding": "utf-16"}
    with pytest.raises(RecipeError, match="running text isn't read in utf-16; save it as UTF-8"):
        make_recipe("fill-mask", **settings)
