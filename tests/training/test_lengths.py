"""Rows that are too long: cut, dropped or refused, and counted in notes and provenance."""

from __future__ import annotations

import pytest

from lorary.hub.errors import DataError, RecipeError
from lorary.training import train
from lorary.training.data import Example
from lorary.training.progress import Reporter
from lorary.training.tasks import make_task
from lorary.training.tasks.rows.encoded import Encoded
from lorary.training.tasks.rows.lengths import Length, Room, fit_lengths
from samples import bpe_tokenizer, wordpiece_tokenizer, write_jsonl

LIMIT = 16
ROOM = Room(f"{LIMIT} tokens", "training.max_length")


def classify(make_recipe, *word_counts):
    """Rows of so many one-token words, between [CLS] and [SEP]."""
    task = make_task(make_recipe(), ("bad", "good"))
    rows = [{"text": "profit " * count, "label": "bad"} for count in word_counts]
    return encode(task, wordpiece_tokenizer(), rows)


def tag(make_recipe, *word_counts):
    task = make_task(make_recipe("token-classification"), ("B-X", "O"))
    rows = [{"tokens": ["profit"] * count, "tags": ["O"] * count} for count in word_counts]
    return encode(task, wordpiece_tokenizer(), rows)


def generate(make_recipe, *word_counts):
    task = make_task(make_recipe("text-generation", **{"data.columns": {"text": "text"}}), None)
    tokenizer = bpe_tokenizer()
    assert len(tokenizer.encode(" sales", add_special_tokens=False)) == 1
    return encode(task, tokenizer, [{"text": " sales" * count} for count in word_counts])


def encode(task, tokenizer, rows):
    examples = [Example(row, f"rows, row {number}") for number, row in enumerate(rows, start=1)]
    return task.encode(examples, tokenizer, LIMIT, lambda line: None)


@pytest.mark.parametrize("rows", [classify, tag, generate])
def test_each_task_says_how_long_its_rows_are_and_how_much_is_left(rows, make_recipe):
    encoded = rows(make_recipe, 3, 14, 15, 40)  # two special tokens are added
    assert encoded.lengths == (Length(5, 5), Length(16, 16), Length(17, 16), Length(42, 16))
    assert [len(feature["input_ids"]) for feature in encoded.features] == [5, 16, 16, 16]


def test_of_a_pair_both_texts_count(make_recipe):
    task = make_task(make_recipe(), ("bad", "good"))
    row = {"text": "profit " * 9, "text_pair": "sales " * 9, "label": "bad"}
    (length,) = encode(task, wordpiece_tokenizer(), [row]).lengths
    assert (length.full, length.kept, length.cut) == (21, 16, 5)


def test_a_generation_row_whose_prompt_fills_the_length_has_nothing_to_learn(make_recipe):
    task = make_task(make_recipe("text-generation", **{"prompt.format": "plain"}), None)
    tokenizer = bpe_tokenizer()
    rows = [{"prompt": " sales" * count, "completion": " rose"} for count in (5, 14, 15, 30)]
    encoded = encode(task, tokenizer, rows)
    # <s> and 14 words leave one place, the completion's; with 15 none is left.
    assert [length.learned for length in encoded.lengths] == [True, True, False, False]


def made(*lengths):
    examples = tuple(Example({}, f"rows.jsonl, row {number}") for number in range(1, len(lengths) + 1))
    features = tuple({"input_ids": [0] * length.kept} for length in lengths)
    return Encoded(examples, features, tuple(range(len(lengths))), lengths)


FITS, CUT, LONGEST, BARE = Length(8, 8), Length(20, 16), Length(30, 16), Length(40, 16, learned=False)


def test_truncated_rows_are_counted_with_their_tokens():
    notes: list[str] = []
    parts, figures = fit_lengths({"train": made(FITS, CUT, LONGEST, FITS)}, "truncate", ROOM, notes.append)
    assert len(parts["train"].features) == 4
    assert notes == [
        "2 of 4 training rows are longer than 16 tokens (the longest: 30) and were cut: 18 tokens lost "
        "(training.max_length, data.too_long)"
    ]
    assert figures["train"] == {
        "rows": 4, "longest": 30, "cut": 2, "tokens_cut": 18, "dropped": 0, "nothing_learned": 0,
    }  # fmt: skip


def test_drop_leaves_long_rows_out_of_the_training_rows_alone():
    notes: list[str] = []
    rows = made(FITS, CUT, LONGEST, FITS)
    parts, figures = fit_lengths({"train": rows, "validation": rows, "test": rows}, "drop", ROOM, notes.append)
    assert parts["train"].golds == (0, 3)
    assert [example.place for example in parts["train"].examples] == ["rows.jsonl, row 1", "rows.jsonl, row 4"]
    assert parts["train"].lengths == (FITS, FITS)
    assert len(parts["validation"].features) == len(parts["test"].features) == 4
    assert notes[0].endswith("and were dropped (data.too_long)")
    assert "held-out rows" in notes[2]
    assert "only training rows are dropped, or the metrics would flatter" in notes[2]
    assert (figures["train"]["dropped"], figures["train"]["cut"], figures["test"]["dropped"]) == (2, 0, 0)


@pytest.mark.parametrize(
    ("too_long", "told"),
    [
        (
            "truncate",
            ["1 of 2 training rows were dropped: nothing to learn within 16 tokens (first: rows.jsonl, row 2)"],
        ),
        ("drop", ["1 of 2 training rows are longer than 16 tokens (the longest: 40) and were dropped (data.too_long)"]),
    ],
)
def test_a_row_that_is_left_out_is_told_of_once(too_long, told):
    notes: list[str] = []
    fit_lengths({"train": made(FITS, BARE)}, too_long, ROOM, notes.append)
    assert notes == told


def test_rows_with_nothing_to_learn_are_not_trained_on_and_stay_among_the_held_out():
    notes: list[str] = []
    rows = made(FITS, BARE, CUT)
    parts, figures = fit_lengths({"train": rows, "test": rows}, "truncate", ROOM, notes.append)
    assert parts["train"].golds == (0, 2)
    assert parts["test"].golds == (0, 1, 2)
    assert "1 of 3 training rows were dropped: nothing to learn within 16 tokens (first: rows.jsonl, row 2)" in notes
    assert "1 of 3 held-out rows have nothing to score within 16 tokens (first: rows.jsonl, row 2)" in notes
    assert figures["train"]["dropped"] == figures["train"]["nothing_learned"] == 1
    assert figures["train"]["tokens_cut"] == 4  # of the rows that are trained on


@pytest.mark.parametrize(("part", "kind"), [("train", "training"), ("test", "held-out")])
def test_a_part_without_anything_to_learn_is_an_error(part, kind):
    with pytest.raises(DataError, match=f"no {kind} row has a token to learn within 16 tokens .the longest has 40"):
        fit_lengths({part: made(BARE, BARE)}, "truncate", ROOM, lambda line: None)


def test_longer_rows_are_not_asked_for_where_none_is_too_long():
    with pytest.raises(DataError) as caught:
        fit_lengths({"train": made(Length(8, 8, learned=False))}, "truncate", ROOM, lambda line: None)
    assert "max_length" not in str(caught.value)


def test_error_lists_the_long_rows_of_all_parts_with_their_lengths():
    with pytest.raises(DataError) as caught:
        fit_lengths({"train": made(FITS, CUT), "test": made(LONGEST)}, "error", ROOM, lambda line: None)
    assert caught.value.problems == ("rows.jsonl, row 2: 20 tokens, 16 fit", "rows.jsonl, row 1: 30 tokens, 16 fit")
    assert "rows of more than 16 tokens; raise training.max_length, or set data.too_long to truncate or drop" in str(
        caught.value
    )
    fit_lengths({"train": made(FITS)}, "error", ROOM, lambda line: None)


def test_a_task_that_never_cuts_has_no_figures():
    whole = Encoded((Example({}, ""),), ({"input_ids": [1]},), (None,))
    assert fit_lengths({"train": whole}, "error", ROOM, lambda line: None) == ({"train": whole}, {})


def long_rows(tmp_path):
    rows = [{"text": "profit rose " * (1 if index % 4 else 9), "label": "ab"[index % 2]} for index in range(24)]
    return write_jsonl(tmp_path / "long.jsonl", rows)


def test_a_run_drops_and_records_what_it_dropped(make_recipe, registry, tmp_path):
    settings = {"data.train": long_rows(tmp_path), "data.labels": ["a", "b", "good", "bad"], "data.too_long": "drop"}
    recipe = make_recipe(**settings, **{"training.max_length": 8, "training.max_steps": 2})
    reporter = Reporter()
    version = train(recipe, registry, reporter)
    lengths = version.manifest.provenance["lengths"]
    assert lengths["train"]["dropped"] == 6
    assert (lengths["train"]["rows"], lengths["train"]["longest"]) == (24, 20)
    assert lengths["test"]["dropped"] == 0
    assert any(line.startswith("6 of 24 training rows are longer than 8 tokens") for line in reporter.notices)


def test_a_run_with_rows_too_long_for_error_trains_nothing(make_recipe, registry, tmp_path):
    settings = {"data.train": long_rows(tmp_path), "data.labels": ["a", "b", "good", "bad"], "data.too_long": "error"}
    with pytest.raises(DataError, match=r"long\.jsonl, row 1: 20 tokens, 16 fit"):
        train(make_recipe(**settings, **{"training.max_length": 16}), registry)
    assert not (tmp_path / "out").exists()
    assert registry.find() == []


def test_another_word_is_refused(make_recipe):
    with pytest.raises(RecipeError, match=r"data\.too_long: expected one of truncate, drop, error, found 'cut'"):
        make_recipe(**{"data.too_long": "cut"})
