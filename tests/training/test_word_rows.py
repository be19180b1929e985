"""Tagged words as tables have them: a word in each row, beside the sentence that it is of."""

from __future__ import annotations

import csv
import gzip
import io
import json

import numpy
import pytest

from lorary.hub.errors import DataError, RecipeError
from lorary.hub.manifest import BaseIdentity, Manifest
from lorary.training.evaluation.recipe import _of_run

TAG = "token-classification"
KAGGLE = {"data.sentence_column": "Sentence #", "data.columns": {"tokens": "Word", "tags": "Tag"}}
SENTENCES = [
    (["NA", '"', "null"], ["B-ORG", "O", "O"]), (["nan"], ["B-PER"]),
    (["é,", "Al", "#", "None"], ["O", "B-PER", "O", "O"]), (["x", "y"], ["O", "O"]),
]  # fmt: skip


def table(repeat=False, mark=",", name="Sentence: {}"):
    """The sentences in Kaggle's layout; with ``repeat`` each row says which sentence it is of."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=mark)
    writer.writerow(["Sentence #", "Word", "POS", "Tag"])
    for number, (words, tags) in enumerate(SENTENCES, start=1):
        for place, (word, tag) in enumerate(zip(words, tags, strict=True)):
            writer.writerow([name.format(number) if repeat or not place else "", word, "X", tag])
    return text.getvalue()


@pytest.fixture
def load(load_file):
    """``load(name, content, **settings)``: the sentences of such a file in its order, with their places and notes."""

    def load(name, content, **settings):
        data, notes = load_file(name, content, TAG, **settings)
        rows = [(row.place.rpartition("/")[2], row) for row in data.train + data.test]
        found = sorted(rows, key=lambda row: int(row[0].split("row")[1].split()[-3 if "rows" in row[0] else 0]))
        return [(place, row.values["tokens"], row.values["tags"]) for place, row in found], notes

    return load


def problems(caught):
    return [problem.rpartition("/")[2] for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("name", "content", "settings"),
    [
        ("ner_dataset.csv", table().encode("latin-1"), {"data.encoding": "latin-1"}),
        ("a.csv", table(repeat=True, name="{}"), {}),
        ("a.csv", table(mark=";"), {}),
        ("a.tsv.gz", gzip.compress(table(mark="\t").encode()), {}),
    ],
)
def test_words_become_sentences_and_stay_words(name, content, settings, load):
    found, notes = load(name, content, **KAGGLE, **settings)
    assert found == [
        (f"{name}, {rows}", *sentence)
        for rows, sentence in zip(("rows 2 to 4", "row 5", "rows 6 to 9", "rows 10 to 11"), SENTENCES, strict=True)
    ]
    assert any("10 rows are the words of 4 sentences" in note for note in notes)


def test_words_of_json_and_parquet_become_sentences(load, tmp_path):
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"sentence_id": number, "words": word, "labels": tag}
        for number, (words, tags) in enumerate(SENTENCES)
        for word, tag in zip(words, tags, strict=True)
    ]
    settings = {"data.sentence_column": "sentence_id", "data.columns": {"tokens": "words", "tags": "labels"}}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "b.parquet")
    for name, content in (
        ("a.jsonl", "\n".join(map(json.dumps, rows))), ("b.parquet", (tmp_path / "b.parquet").read_bytes()),
    ):  # fmt: skip
        assert [sentence[1:] for sentence in load(name, content, **settings)[0]] == SENTENCES


def test_a_column_beside_the_tags_may_be_learned(load):
    found, _ = load(
        "a.csv", table() + "Sentence: 9,a,Y,O\n", **{**KAGGLE, "data.columns": {"tokens": "Word", "tags": "POS"}}
    )
    assert [tags for _, _, tags in found][-2:] == [["X", "X"], ["Y"]]


HEAD = "Sentence #,Word,Tag\n"


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (",a,O\n1,b,B-X\n", "row 2, Sentence #: is empty, and no sentence has begun"),
        ("1,a,O\n2,b,O\n1,c,B-X\n", "row 4, Sentence #: '1' again, whose sentence ended in row 2; sort the rows by"),
        ("1,a,O\n,b,O\n1,c,B-X\n", "row 4, Sentence #: '1' again, behind rows without one; expected a new one"),
        ("1,a,O\n1, ,B-X\n2,c,O\n", "row 3, Word: is empty"),
        ("1,a,O\n1,b,\n2,c,O\n", "row 3, Tag: is empty"),
        ('1,a,O\n1,",O\n1,b,B-X\n2,",O\n2,c,O\n', "row 5, Word: holds a line break"),
    ],
)
def test_what_is_wrong_is_told_by_the_rows_of_the_file(rows, problem, load):
    with pytest.raises(DataError) as caught:
        load("a.csv", HEAD + rows, **KAGGLE)
    (found,) = problems(caught)
    assert found.startswith(f"a.csv, {problem}")


def test_a_sentence_that_lacks_a_word_may_be_left_out(load):
    rows = "1,a,O\n1,b,B-X\n2,,O\n2,c,O\n3,d,O\n4,e,O\n"
    found, notes = load("a.csv", HEAD + rows, **KAGGLE, **{"data.incomplete": "drop"})
    assert [words for _, words, _ in found] == [["a", "b"], ["d"], ["e"]]
    assert any(note.startswith("1 of 4 rows are left out") for note in notes)
    with pytest.raises(DataError, match=r"data\.incomplete: drop leaves out"):
        load("a.csv", HEAD + rows, **KAGGLE)
    lines = '{"Sentence #": 1, "Word": "a", "Tag": "O"}\n{"Sentence #": 1, "Word": null, "Tag": "O"}\n'
    with pytest.raises(DataError, match=r"row 2, Word: is nothing; data frames, .* make that of words such as NA"):
        load("a.jsonl", lines, **KAGGLE)


@pytest.mark.parametrize(
    ("header", "settings", "told"),
    [
        ("Sentence #,Word,POS,Tag", {}, '"Sentence #" and data.columns to {tokens: Word, tags: Tag}'),
        ("sentence_id,words,POS,labels", {}, "sentence_id and data.columns to {tokens: words, tags: labels}"),
        ("Sentence #,Word,POS,Tag", {"data.columns": {"tokens": "Word", "tags": "Tag"}}, '"Sentence #"'),
        ("sent_id,tokens,POS,tags", {}, "sent_id"),
    ],
)
def test_where_the_setting_is_missing_the_error_has_the_line_to_write(header, settings, told, load):
    with pytest.raises(DataError) as caught:
        load("a.csv", header + table().removeprefix("Sentence #,Word,POS,Tag") + ",1 000,X,O\n", **settings)
    assert problems(caught) == [f"the rows look like a word each; set data.sentence_column to {told}"]


def test_where_no_column_looks_like_the_sentence_the_error_says_what_there_is(load):
    with pytest.raises(DataError) as caught:
        load("a.csv", "tokens,tags\nEU,B-ORG\nsays,O\n")
    assert problems(caught) == [
        "the rows look like a word each; name the column that says which sentence a word is of with "
        "data.sentence_column, or keep a word and its tag a line, a blank line after each sentence, and name the file "
        ".conll"
    ]


def test_a_file_of_lines_and_blank_lines_is_told_to_be_conll(load):
    with pytest.raises(DataError) as caught:
        load("a.tsv", "EU\tB-ORG\nsays\tO\n\nAl\tB-PER\n")
    assert problems(caught)[-1] == "if a blank line ends each sentence, name the file .conll, where no row holds names"


def test_a_column_that_is_not_there_is_told_and_so_is_what_yaml_takes_for_a_comment(load):
    with pytest.raises(DataError) as caught:
        load("a.csv", table(), **{**KAGGLE, "data.sentence_column": "Sentence"})
    (problem,) = problems(caught)
    assert problem.startswith(
        "a.csv: no column 'Sentence' (data.sentence_column); there are POS, Sentence #, Tag, Word"
    )
    assert problem.endswith('; YAML takes a # behind a blank for a comment: put "Sentence #" in double quotes')


def test_rows_of_lists_need_no_column_of_the_sentence(load):
    line = json.dumps({"id": 1, "tokens": ["a"], "tags": ["O"]})
    with pytest.raises(DataError, match=r"the rows hold lists of words already; leave data\.sentence_column out"):
        load("a.jsonl", line, **{"data.sentence_column": "id"})


@pytest.mark.parametrize("write", [json.dumps, repr, lambda words: str(numpy.array(words))])
def test_lists_of_words_may_be_texts(write, load):
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerows([["tokens", "tags"], *([write(words), write(tags)] for words, tags in SENTENCES)])
    assert [sentence for _, *sentence in load("a.csv", text.getvalue())[0]] == [list(one) for one in SENTENCES]
    cut = "tokens,tags\n\"['a', 'b']\",\"['O', 'O']\"\n\"['a', 'b\",\"['O', 'O']\"\n"
    with pytest.raises(DataError, match=r"row 3, tokens: expected a list of words, found \"\['a', 'b\""):
        load("a.csv", cut)


@pytest.mark.filterwarnings("error")
def test_escapes_in_lists_are_those_of_json_where_they_are_json(load):
    lists = [json.dumps(["\U0001f600", "a/b"]).replace("/", "\\/"), r"['a\d', '\\']"]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([["tokens", "tags"], *([words, "['O', 'B-X']"] for words in lists)])
    found, _ = load("a.csv", text.getvalue())
    assert [words for _, words, _ in found] == [["\U0001f600", "a/b"], [r"a\d", "\\"]]


def test_settings_that_contradict_it_are_told(make_recipe, tmp_path):
    path = tmp_path / "a.conll"
    path.write_text("a O\n")
    for task, data, problem in (
        (TAG, str(path), "a .conll file has a blank line after each sentence"),
        ("text-classification", "user/rows", "only token-classification has words a row"),
    ):
        with pytest.raises(RecipeError, match=problem):
            make_recipe(task, **{"data.train": data, "data.test": None, "data.sentence_column": "id"})


def test_an_adapter_is_measured_on_the_layout_that_it_was_trained_on():
    recipe = {"data": {"sentence_column": "Sentence #"}}
    manifest = Manifest(TAG, BaseIdentity("org/base"), provenance={"recipe": recipe})
    calls = (("rows.csv", ()), ("rows.conll", ()), ("rows.jsonl", ("data.columns.tokens",)))
    told = [_of_run(manifest, data, given).get("data.sentence_column") for data, given in calls]
    assert told == ["Sentence #", None, None]
