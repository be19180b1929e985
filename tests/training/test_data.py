"""Data files: whatever is wrong with a row is reported with its file and number, and nothing is half read."""

from __future__ import annotations

import hashlib
import json

import pytest

from lorary.hub.errors import DataError
from lorary.training.data import load_data, split_rows
from lorary.training.data.files.contents import Manner
from lorary.training.data.files.source import read_source
from samples import tag_rows, tone_rows, write_jsonl

CLASSIFY, TAG, GENERATE = "text-classification", "token-classification", "text-generation"


def load(make_recipe, tmp_path, task, rows, name="rows.jsonl", **settings):
    """Load rows (or the text of a file) as training rows, a fifth of them held out."""
    path = tmp_path / name
    if isinstance(rows, bytes):
        path.write_bytes(rows)
    elif isinstance(rows, str):
        path.write_text(rows)
    else:
        write_jsonl(path, rows)
    recipe = make_recipe(task, **{"data.train": str(path), "data.test": None, **settings})
    notes: list[str] = []
    return load_data(recipe, notes.append), notes


def bad(make_recipe, tmp_path, task, rows, name="rows.jsonl", **settings):
    with pytest.raises(DataError) as caught:
        load(make_recipe, tmp_path, task, rows, name, **settings)
    return list(caught.value.problems)


GOOD = {"text": "profit rose", "label": "good"}
OTHER = {"text": "profit fell", "label": "bad"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"text": "", "label": "good"}, "text: is empty"),
        ({"text": "  \n", "label": "good"}, "text: is empty"),
        ({"text": None, "label": "good"}, "text: expected a text, found nothing"),
        ({"text": 5, "label": "good"}, "text: expected a text, found 5"),
        ({"text": ["a"], "label": "good"}, "text: expected a text, found ['a']"),
        ({"label": "good"}, "text: missing; the row has label"),
        ({"text": "a", "label": ""}, "label: is empty"),
        ({"text": "a", "label": None}, "label: expected a label's name or number, found nothing"),
        ({"text": "a", "label": 0.5}, "label: expected a label's name or number, found 0.5"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_number(row, message, make_recipe, tmp_path):
    found = bad(make_recipe, tmp_path, CLASSIFY, [GOOD, OTHER, row])
    assert found == [f"{tmp_path / 'rows.jsonl'}, row 3, {message}"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, ": 2 tokens but 1 tags"),
        ({"tokens": [], "tags": []}, ", tokens: is an empty list"),
        ({"tokens": ["a", ""], "tags": ["O", "O"]}, ", tokens: word 2 is '', expected a text that isn't empty"),
        ({"tokens": "a b", "tags": ["O", "O"]}, ", tokens: expected a list of words, found 'a b'"),
        ({"tokens": ["a"], "tags": "O"}, ", tags: expected a list of tags, found 'O'"),
        ({"tokens": ["a"], "tags": [None]}, ", tags: tag 1: expected a label's name or number, found nothing"),
    ],
)
def test_bad_tags_are_named(row, message, make_recipe, tmp_path):
    assert bad(make_recipe, tmp_path, TAG, [*tag_rows(5), row]) == [f"{tmp_path / 'rows.jsonl'}, row 6{message}"]


USER, ANSWER = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "expected a list of messages, found []"),
        ("hello", "expected a list of messages, found 'hello'"),
        ([USER], "no message of the assistant, so there is nothing to learn"),
        (
            [USER, {"role": "bot", "content": "x"}],
            "message 2: role 'bot', expected one of system, user,",
        ),
        (["hi", ANSWER], "message 1: expected {role, content} with a text as content, found 'hi'"),
        ([USER, {"role": "assistant"}], "message 2: expected {role, content} with a text as content, found nothing as"),
        (
            [{**USER, "content": [{"type": "image_url", "image_url": {}}, {"type": "text", "text": "?"}]}, ANSWER],
            "message 1: expected {role, content} with a text as content, found a part 'image_url'",
        ),
        ([USER, {**ANSWER, "content": " "}], "message 2: the assistant's content is empty"),
    ],
)
def test_bad_messages_are_named(messages, message, make_recipe, tmp_path):
    rows = [{"messages": [USER, ANSWER]}, {"messages": messages}]
    settings = {"data.columns": {"messages": "messages"}}
    (found,) = bad(make_recipe, tmp_path, GENERATE, rows, **settings)
    assert found.startswith(f"{tmp_path / 'rows.jsonl'}, row 2, messages: {message}")


def test_what_stands_beside_the_messages_of_a_chat_is_told(make_recipe, tmp_path):
    rows = [{"messages": [USER, {**ANSWER, "content": f"yes {n}"}], "tools": [{"name": "f"}] * n} for n in range(5)]
    _, notes = load(make_recipe, tmp_path, GENERATE, rows, **{"data.columns": {"messages": "messages"}})
    place = f"{tmp_path / 'rows.jsonl'}, row 2"
    assert notes[0] == (
        f"4 of 5 chats have 'tools' beside their messages (first: {place}), which isn't read; set data.columns.tools "
        "to tools"
    )


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"text": "a", "label": "b"}\n{"text": \n', "row 2: not valid JSON (Expecting value"),
        ("a.jsonl", '["a"]\n', "row 1: expected an object with columns, found list"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "\xff"}\n', "row 2: not UTF-8 text"),
        ("a.jsonl", json.dumps([GOOD] * 30, indent=2), "row 1: [ goes on in the next line, and a row is a line of its"),
        ("a.jsonl", "", "holds no rows"),
        ("a.jsonl", "\n \n", "holds no rows"),
        ("a.json", '{"text": "a"}', "expected a list of rows, found dict with the keys ['text']"),
        ("a.json", '{"text": "a"}\n{"text": \n', "row 2: not valid JSON (Expecting value"),
        ("a.json", '[{"text": "a"}\n{"text": "b"}]', "not valid JSON (Expecting ',' delimiter"),
        ("a.json", '[{"text": "a"}, 3]', "row 2: expected an object with columns, found int"),
        ("a.csv", "text,label\na,b\nc\n", "row 3: 1 cells, the header has 2"),
        ("a.csv", "text,text\na,b\n", "row 1: the header names 'text' twice"),
        ("a.csv", 'text,label\n"a,b\n', "not valid CSV"),
        ("a.csv", "text,label\n", "holds no rows"),
        ("a.parquet", "PAR1 this is not one", "not a readable Parquet file"),
    ],
)
def test_unreadable_files_are_named_with_the_row(name, content, message, make_recipe, tmp_path):
    assert any(message in found for found in bad(make_recipe, tmp_path, CLASSIFY, content, name))


def test_bad_rows_are_counted_and_the_first_twenty_listed(make_recipe, tmp_path):
    found = bad(make_recipe, tmp_path, CLASSIFY, [GOOD, OTHER, *[{"text": "", "label": "good"}] * 50])
    assert len(found) == 21
    assert found[-1] == "and 30 more"


def test_a_column_that_no_row_has_is_one_problem_with_the_nearest_name(make_recipe, tmp_path):
    rows = [{"txt": "a", "label": "b"}] * 30
    (found,) = bad(make_recipe, tmp_path, CLASSIFY, rows)
    assert found.endswith("no column 'text' (for text); there are label, txt; did you mean 'txt'?")
    (found,) = bad(make_recipe, tmp_path, CLASSIFY, [{"sentence": "a", "label": "b"}])
    assert found.endswith("there are label, sentence; name it with data.columns.text")


def test_columns_within_a_column_are_told_and_named_with_dots(make_recipe, tmp_path):
    rows = [{"translation": {"en": f"profit rose {n}", "de": f"der Gewinn stieg {n}"}, "v.1": "x"} for n in range(5)]
    found = bad(make_recipe, tmp_path, "translation", rows)
    assert found[2:] == ["translation has columns of its own; name them as translation.en, translation.de"]
    named = {"data.columns.source": "translation.en", "data.columns.target": "translation.de"}
    data, _ = load(make_recipe, tmp_path, "translation", rows, **named)
    values = [row.values for row in (*data.train, *data.test)]
    assert {"source": "profit rose 3", "target": "der Gewinn stieg 3"} in values
    assert len(values) == 5
    found = bad(make_recipe, tmp_path, "translation", [*rows, {"translation": {"en": "a"}}], **named)
    assert found[0].endswith("row 6, translation.de: missing; the row has translation, translation.en")
    # A column whose own name has a dot is that column.
    found = bad(make_recipe, tmp_path, "translation", rows, **{**named, "data.columns.target": "v.1.de"})
    assert "no column 'v.1.de'" in found[0]


def test_a_label_of_the_held_out_rows_must_be_known(make_recipe, tmp_path):
    test = write_jsonl(tmp_path / "held.jsonl", [{"text": "a", "label": "goood"}])
    (found,) = bad(make_recipe, tmp_path, CLASSIFY, [GOOD, OTHER], **{"data.test": test})
    assert (
        found == f"{test}, row 1, label: unknown label 'goood'; the training rows have bad, good; did you mean 'good'?"
    )


def test_many_unknown_labels_are_counted(make_recipe, tmp_path):
    test = write_jsonl(tmp_path / "held.jsonl", [{"text": "a", "label": f"l{n}"} for n in range(500)])
    found = bad(make_recipe, tmp_path, CLASSIFY, [GOOD, OTHER], **{"data.test": test})
    assert found[0].endswith("row 1, label: unknown label 'l0'; the training rows have bad, good")
    assert found[20:] == ["and 480 more"]


def test_a_tag_of_the_held_out_rows_must_be_known(make_recipe, tmp_path):
    test = write_jsonl(tmp_path / "held.jsonl", [{"tokens": ["a"], "tags": ["B-PER"]}])
    (found,) = bad(make_recipe, tmp_path, TAG, tag_rows(5), **{"data.test": test})
    assert "row 1, tags: unknown label 'B-PER'; the training rows have B-ORG, I-ORG, O" in found


def test_one_class_is_not_enough(make_recipe, tmp_path):
    (found,) = bad(make_recipe, tmp_path, CLASSIFY, [GOOD] * 10)
    assert found.endswith("rows.jsonl: every training row has the label good; expected at least two")


def test_label_ids_are_stable_and_numbers_are_ordered_by_value(make_recipe, tmp_path):
    rows = [{"text": f"t{n}", "label": n} for n in (10, 9, 2, 2, 9, 10, 10, 2, 9, 2, "--5", "--5")]
    data, _ = load(make_recipe, tmp_path, CLASSIFY, rows)
    assert data.labels == ("2", "9", "10", "--5")
    data, _ = load(make_recipe, tmp_path, CLASSIFY, tone_rows(20)[::-1])
    assert data.labels == ("bad", "good")


def test_listed_labels_name_the_numbers_and_set_the_order(make_recipe, tmp_path):
    rows = [{"text": f"t{n}", "label": n % 2} for n in range(10)]
    data, _ = load(make_recipe, tmp_path, CLASSIFY, rows, **{"data.labels": ("negative", "positive", "unused")})
    assert data.labels == ("negative", "positive", "unused")
    assert {example.values["label"] for example in data.train} == {"negative", "positive"}
    (found,) = bad(
        make_recipe, tmp_path, CLASSIFY, [*rows[:1], {"text": "x", "label": 7}], **{"data.labels": ("a", "b")}
    )
    assert "unknown label '7'; data.labels has a, b" in found
    (found,) = bad(make_recipe, tmp_path, CLASSIFY, rows, **{"data.labels": ("a", "a")})
    assert found == "'a' is listed twice"


def test_labels_that_look_alike_are_told(make_recipe, tmp_path):
    names = ("spam", "Spam ", "ham", "caf\u00e9", "cafe\u0301")
    rows = [{"text": f"t{n}", "label": names[n % 5]} for n in range(25)]
    data, notes = load(make_recipe, tmp_path, CLASSIFY, rows)
    assert len(data.labels) == 5
    assert notes[0] == (
        "labels that look alike are kept apart: 'Spam ' and 'spam', 'cafe\u0301' and 'caf\u00e9'; if they are one, "
        "mend the rows"
    )


def test_listed_labels_that_are_numbers_are_names(make_recipe, tmp_path):
    rows = [{"text": f"t{n}", "label": 1 + n % 3} for n in range(12)]
    data, _ = load(make_recipe, tmp_path, CLASSIFY, rows, **{"data.labels": ("1", "2", "3", "4")})
    assert {example.place: example.values["label"] for example in (*data.train, *data.test)} == {
        f"{tmp_path / 'rows.jsonl'}, row {1 + n}": str(1 + n % 3) for n in range(12)
    }


def test_listed_labels_name_the_numbers_of_a_csv_file_too(make_recipe, tmp_path):
    rows = "text,label\n" + "".join(f"t{n},{n % 2}\n" for n in range(10))
    settings = {"data.labels": ("negative", "positive")}
    data, notes = load(make_recipe, tmp_path, CLASSIFY, rows, "rows.csv", **settings)
    assert {example.values["label"] for example in data.train} == {"negative", "positive"}
    told = "labels that are numbers count the listed ones from 0: 0 is 'negative', 1 is 'positive'"
    assert notes[0] == told
    rows = "text,label\n" + "".join(f"t{n},{1 + n % 2}\n" for n in range(10))  # AG News begins with 1
    problem, *_ = bad(make_recipe, tmp_path, CLASSIFY, rows, "rows.csv", **settings)
    assert problem.endswith("label: unknown label '2'; data.labels has negative, positive; numbers count them from 0")
    names = [{"text": f"t{n}", "label": ("negative", "positive")[n % 2]} for n in range(10)]
    assert told not in load(make_recipe, tmp_path, CLASSIFY, names, **settings)[1]


def test_all_formats_give_the_same_rows(make_recipe, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rows = [{"text": 'a, "quoted"\nline', "label": "x"}, *tone_rows(9)]
    write_jsonl(tmp_path / "a.jsonl", rows)
    (tmp_path / "a.json").write_text(json.dumps(rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    cells = ['"' + row["text"].replace('"', '""') + '",' + row["label"] for row in rows]
    (tmp_path / "a.csv").write_text("\ufefftext,label\r\n" + "\r\n".join(cells))
    read = {suffix: read_source(str(tmp_path / f"a.{suffix}")) for suffix in ("jsonl", "json", "csv", "parquet")}
    for source in read.values():
        assert [dict(row.values) for row in source.rows] == rows


def test_lists_survive_parquet(make_recipe, tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(tag_rows(10)), tmp_path / "a.parquet")
    recipe = make_recipe(TAG, **{"data.train": str(tmp_path / "a.parquet"), "data.test": None})
    assert load_data(recipe).labels == ("B-ORG", "I-ORG", "O")


def test_a_folder_is_read_as_a_dataset(make_recipe, tmp_path):
    folder = tmp_path / "dataset"
    folder.mkdir()
    write_jsonl(folder / "train.jsonl", tone_rows(20))
    write_jsonl(folder / "test.jsonl", tone_rows(6, seed=3))
    write_jsonl(folder / "validation.jsonl", tone_rows(10, seed=4))
    splits = {"data.test_split": "test", "data.validation_split": "validation", "training.early_stopping": 2}
    data = load_data(make_recipe(**{"data.train": str(folder), "data.test": None, **splits}))
    assert (len(data.train), len(data.validation), len(data.test)) == (20, 10, 6)
    with pytest.raises(DataError, match="can't be loaded as a dataset"):
        load_data(make_recipe(**{"data.train": str(folder), "data.test": None, "data.test_split": "dev"}))


def test_class_labels_of_a_dataset_become_names(tmp_path):
    import datasets

    features = datasets.Features({
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["neg", "pos"]),
        "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
    })  # fmt: skip
    folder = tmp_path / "named"
    folder.mkdir()
    table = datasets.Dataset.from_dict({"text": ["a"], "label": [1], "tags": [[0, 1]]}, features=features)
    table.to_parquet(folder / "train.parquet")
    (row,) = read_source(str(folder)).rows
    assert (row.values["label"], row.values["tags"]) == ("pos", ["O", "B-X"])


def test_a_class_label_that_says_there_is_none_is_no_class(make_recipe, tmp_path):
    import datasets

    features = datasets.Features({
        "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"]),
    })  # fmt: skip
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, -1, 0]}, features=features)
    table.to_parquet(path := tmp_path / "named.parquet")
    with pytest.raises(DataError) as caught:
        load_data(make_recipe(**{"data.train": str(path), "data.test": None}))
    assert caught.value.problems == (f"{path}, row 2, label: expected a label's name or number, found nothing",)


def test_labels_may_be_true_or_false(make_recipe, tmp_path):
    rows = [{"text": f"text {n}", "label": n % 3 == 0} for n in range(10)]
    data, _ = load(make_recipe, tmp_path, CLASSIFY, rows)
    assert (data.labels, data.problem_type) == (("false", "true"), "single_label_classification")
    assert {example.values["label"] for example in data.train} == {"false", "true"}
    with pytest.raises(DataError, match=r"unknown label 'false'; data\.labels has no, yes"):
        load(make_recipe, tmp_path, CLASSIFY, rows, **{"data.labels": ("no", "yes")})


def test_a_json_file_may_have_a_row_a_line(make_recipe, tmp_path):
    rows = "".join(f"{json.dumps({'text': f'text {n}', 'label': n % 2})}\n" for n in range(5))
    data, _ = load(make_recipe, tmp_path, CLASSIFY, rows, "rows.json")
    assert sorted(example.place[-1] for example in data.train + data.test) == ["1", "2", "3", "4", "5"]


def test_columns_of_a_csv_file_without_a_name_are_counted(make_recipe, tmp_path):
    content = "v1,text,,\n" + "".join(f"{'ham' if n % 2 else 'spam'},text {n},,\n" for n in range(5))
    data, _ = load(make_recipe, tmp_path, CLASSIFY, content, "rows.csv", **{"data.columns": {"label": "v1"}})
    assert data.labels == ("ham", "spam")
    (problem,) = bad(make_recipe, tmp_path, CLASSIFY, content, "rows.csv")
    assert "there are column 3, column 4, text, v1" in problem


def test_a_saved_dataset_and_its_parquet_file_keep_the_names_of_its_labels(tmp_path, make_recipe):
    import datasets

    features = datasets.Features({
        "text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"]),
    })  # fmt: skip
    table = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, 0]}, features=features)
    table.to_parquet(tmp_path / "named.parquet")
    table.save_to_disk(tmp_path / "saved")
    for name in ("named.parquet", "saved"):
        assert [row.values["label"] for row in read_source(str(tmp_path / name)).rows] == ["pos", "neg"]
    with pytest.raises(DataError, match="was saved as one table, without splits; found 'test'"):
        read_source(str(tmp_path / "saved"), Manner(split="test"))


def test_squads_own_files_are_rows_of_questions(make_recipe, tmp_path):
    context = "The bank fell in May."
    asked = [
        {"id": "1", "question": "what?", "answers": [{"text": "bank", "answer_start": 4}], "is_impossible": False},
        {"id": "2", "question": "who?", "answers": [], "plausible_answers": [], "is_impossible": True},
    ]
    articles = [{"title": "a", "paragraphs": [{"qas": asked, "context": f"{context} {n}"}] * 2} for n in range(5)]
    (tmp_path / "squad.json").write_text(json.dumps({"version": "v2.0", "data": articles}))
    recipe = make_recipe("question-answering", **{"data.train": str(tmp_path / "squad.json"), "data.test": None})
    data = load_data(recipe)
    rows = [*data.train, *data.validation, *data.test]
    assert len(rows) == 20
    assert {len(row.values["answers"]) for row in rows} == {0, 1}
    assert {row.values["context"] for row in rows} == {f"{context} {n}" for n in range(5)}
    articles[0]["paragraphs"][0]["qas"][0] = {"question": "what?"}
    (tmp_path / "squad.json").write_text(json.dumps({"data": articles}))
    with pytest.raises(DataError, match=r"squad\.json, row 1, answers: missing"):
        load_data(recipe)


def test_nested_values_come_out_of_tables_as_they_were_written(tmp_path):
    """A table gives a struct the fields of all rows, so that one tool would seem to have another one's arguments."""
    import datasets

    calls = [{"function": {"name": name, "arguments": own}} for name, own in (("sum", {"n": 3}), ("ask", {"who": "a"}))]
    rows = [{"messages": [USER, {"role": "assistant", "tool_calls": [call]}], "tools": [call]} for call in calls]
    values = datasets.Json()
    features = {"messages": datasets.List({"role": datasets.Value("string"), "content": values, "tool_calls": values})}
    as_json = datasets.Features({**features, "tools": datasets.List(values)})
    for name, given in (("structs", None), ("json", as_json)):
        folder = tmp_path / name
        datasets.Dataset.from_list(rows, features=given).to_parquet(folder / "train.parquet")
        for path in (folder, folder / "train.parquet"):
            assert [row.values for row in read_source(str(path)).rows] == rows


def test_parquet_values_that_json_lacks_are_rows_like_others(make_recipe, tmp_path):
    from datetime import datetime
    from decimal import Decimal

    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    numbers = [{"text": f"t{n}", "label": Decimal(n) / 4} for n in range(10)]
    chats = [{"messages": [{**USER, "timestamp": datetime(2026, 1, 1 + n)}, ANSWER]} for n in range(10)]
    for rows, task, settings in (
        (numbers, CLASSIFY, {}), (chats, GENERATE, {"data.columns": {"messages": "messages"}}),
    ):  # fmt: skip
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
        recipe = make_recipe(task, **{"data.train": str(tmp_path / "a.parquet"), "data.test": None, **settings})
        data = load_data(recipe)
        assert len({example.digest for example in (*data.train, *data.test)}) == 10


def test_files_are_named_by_hash_and_count(make_recipe, tmp_path):
    data, _ = load(make_recipe, tmp_path, CLASSIFY, tone_rows(30))
    content = (tmp_path / "rows.jsonl").read_bytes()
    assert data.provenance["train"] == {
        "name": "rows.jsonl", "rows": 30, "sha256": hashlib.sha256(content).hexdigest(), "revision": None,
    }  # fmt: skip


def test_the_split_is_seeded_and_stratified(make_recipe, tmp_path):
    data, _ = load(make_recipe, tmp_path, CLASSIFY, tone_rows(100))
    again, _ = load(make_recipe, tmp_path, CLASSIFY, tone_rows(100))
    other, _ = load(make_recipe, tmp_path, CLASSIFY, tone_rows(100), **{"training.seed": 1})
    assert [example.values["label"] for example in data.test].count("good") == 10
    assert [example.place for example in data.test] == [example.place for example in again.test]
    assert [example.place for example in data.test] != [example.place for example in other.test]
    assert not {example.place for example in data.test} & {example.place for example in data.train}


def test_a_label_with_one_row_stays_with_the_training_rows(make_recipe, tmp_path):
    rows = [*tone_rows(20), {"text": "odd one", "label": "rare"}]
    data, _ = load(make_recipe, tmp_path, CLASSIFY, rows)
    assert "rare" not in {example.values["label"] for example in data.test}
    assert data.labels == ("bad", "good", "rare")


def test_more_labels_than_held_out_rows_are_split_with_a_notice(make_recipe, tmp_path):
    rows = [{"text": f"t{n}", "label": f"l{n % 8}"} for n in range(16)]
    data, notes = load(make_recipe, tmp_path, CLASSIFY, rows, **{"data.test_size": 0.4})
    assert len(data.test) == 6
    assert {example.values["label"] for example in data.train} == set(data.labels)
    assert (
        "6 rows can't hold each of 8 labels in proportion: split at random, but for one row of each label, which is "
        "trained on"
    ) in notes


@pytest.mark.parametrize("shared", [0, 2])
def test_labels_that_hardly_recur_are_split_with_a_notice(shared, make_recipe, tmp_path):
    rows = [{"text": f"t{n}", "label": "same" if n < shared else f"l{n}"} for n in range(20)]
    data, notes = load(make_recipe, tmp_path, CLASSIFY, rows)
    assert (len(data.train), len(data.test)) == (16, 4)
    assert any("labels in proportion: split without regard to labels" in line for line in notes)


def test_one_row_cannot_be_split(make_recipe, tmp_path):
    (found,) = bad(make_recipe, tmp_path, GENERATE, [{"prompt": "a", "completion": "b"}])
    assert found == "1 rows are too few to split 0.2 of them off"


def test_rows_in_both_parts_are_counted(make_recipe, tmp_path):
    rows = tone_rows(20)
    test = write_jsonl(tmp_path / "held.jsonl", [rows[3], {**rows[5], "label": "bad"}, *tone_rows(4, seed=77)])
    _, notes = load(make_recipe, tmp_path, CLASSIFY, rows, **{"data.test": test})
    assert notes == [
        f"2 of 6 held-out rows are among the training rows too (first: {test}, row 1); "
        "their metrics flatter the adapter"
    ]  # fmt: skip


def test_pairs_without_a_prompt_are_the_same_rows_where_all_of_them_is(make_recipe, tmp_path):
    rows = [{"chosen": f"Human: a{n}? Assistant: yes", "rejected": f"Human: a{n}? Assistant: no"} for n in range(10)]
    columns = {"data.columns": {"chosen": "chosen", "rejected": "rejected"}}
    assert not any(
        "among the training rows" in line for line in load(make_recipe, tmp_path, GENERATE, rows, **columns)[1]
    )
    test = write_jsonl(tmp_path / "held.jsonl", [rows[3], {**rows[4], "rejected": "Human: b? Assistant: no"}])
    _, notes = load(make_recipe, tmp_path, GENERATE, rows, **columns, **{"data.test": test})
    assert any(line.startswith("1 of 2 held-out rows are among the training rows too") for line in notes)


def test_few_rows_mean_no_early_stopping_and_say_so(make_recipe, tmp_path):
    data, notes = load(make_recipe, tmp_path, CLASSIFY, tone_rows(40), **{"training.early_stopping": 2})
    assert data.validation == ()
    assert notes == [
        "no early stopping: 0.1 of 32 training rows are too few to judge by; "
        "a data.validation_size that makes 8 rows takes them all the same"
    ]


def test_validation_rows_can_be_named(make_recipe, tmp_path):
    held = write_jsonl(tmp_path / "val.jsonl", tone_rows(5, seed=5))
    data, _ = load(
        make_recipe, tmp_path, CLASSIFY, tone_rows(40), **{"training.early_stopping": 2, "data.validation": held}
    )
    assert [example.place for example in data.validation] == [f"{held}, row {n}" for n in range(1, 6)]
    assert len(data.train) == 32


def test_splitting_keeps_every_row_once(make_recipe, tmp_path):
    data, _ = load(make_recipe, tmp_path, TAG, tag_rows(30))
    kept, held = split_rows(data.train, 0.5, 3, lambda line: None)
    assert sorted(example.place for example in (*kept, *held)) == sorted(example.place for example in data.train)


def test_an_unknown_dataset_is_one_line(make_recipe, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(DataError) as caught:
        read_source("no-such-user/no-such-dataset")
    (problem,) = caught.value.problems
    assert problem.startswith("can't be loaded as a dataset (split 'train'): ")
    assert "\n" not in problem


def test_half_a_character_is_named_by_its_row(make_recipe, tmp_path):
    file = tmp_path / "cut.jsonl"
    file.write_text('{"text": "fine", "label": "a"}\n{"text": "cut \\ud83d", "label": "b"}\n', encoding="utf-8")
    with pytest.raises(DataError, match=r"cut.jsonl, row 2, text: holds half of a character"):
        load_data(make_recipe(**{"data.train": str(file)}))


def test_a_folder_that_cannot_be_a_dataset_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_jsonl(tmp_path / "train.jsonl", tone_rows(3))
    assert len(read_source(".").rows) == 3
    for end, why in (('{"text": "x", "label": ', "JSON parse error"), ('{"tokens": ["x"]}', "don't have the same col")):
        (tmp_path / "train-2.jsonl").write_text(f"{end}\n")
        with pytest.raises(DataError, match=rf"can't be loaded as a dataset \(split 'train'\): .*{why}"):
            read_source(".")
