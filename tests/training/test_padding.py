"""Rows of like length in a batch: less padding, asked for by name, and hinted at where it would pay."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorary.hub.errors import RecipeError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.fitting.padding import padding_hint
from lorary.training.fitting.trainer import make_trainer
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from samples import tone_rows, write_jsonl


@pytest.fixture
def uneven(tmp_path):
    rows = tone_rows(64)
    for index, row in enumerate(rows):
        row["text"] = " ".join([row["text"]] * (1 if index % 8 else 6))
    return write_jsonl(tmp_path / "uneven.jsonl", rows)


def _positions(recipe):
    prepared = prepare(recipe, load_data(recipe), Reporter())
    trainer = make_trainer(
        prepared.model, prepared.base.tokenizer, prepared.task, prepared.train, None, recipe, Path(recipe.output)
    )
    batches = list(trainer.get_train_dataloader())
    real = sum(int(batch["attention_mask"].sum()) for batch in batches)
    return sum(batch["input_ids"].numel() for batch in batches), real


def test_grouping_spares_padding_and_loses_no_row(make_recipe, uneven):
    settings = {"data.train": uneven, "training.batch_size": 8}
    plain, tokens = _positions(make_recipe(**settings))
    grouped, same = _positions(make_recipe(**settings, **{"training.group_by_length": True}))
    assert tokens == same
    assert grouped < 0.8 * plain


def test_much_padding_is_said_with_what_spares_it(make_recipe, uneven, registry):
    reporter = Reporter()
    version = train(make_recipe(**{"data.train": uneven, "training.max_steps": 2}), registry, reporter)
    assert any("is padding; training.group_by_length: true" in line for line in reporter.notices)
    assert version.manifest.provenance["tokens_per_second"] > 0


@pytest.mark.parametrize(
    ("task", "settings"), [("text-classification", {}), ("text-generation", {"training.packing": True})]
)
def test_the_tokens_a_second_are_those_of_the_rows_that_were_gone_through(task, settings, make_small, registry):
    """20 rows in batches of 16, so that an epoch's second step has 4; and packed rows, several in each sequence."""
    recipe = make_small(task, rows=20, **settings, **{"training.batch_size": 16, "training.epochs": 3})
    tokens = sum(len(feature["input_ids"]) for feature in prepare(recipe, load_data(recipe), Reporter()).train.features)
    told = train(recipe, registry).manifest.provenance
    assert told["tokens_per_second"] * told["seconds"] == pytest.approx(3 * tokens, rel=0.02)


def test_no_hint_where_nothing_is_padded(make_recipe):
    assert padding_hint([10] * 20, make_recipe()) is None
    assert padding_hint([1, 50] * 20, make_recipe("text-generation")) is None
    assert "padding" in padding_hint([1, 50] * 20, make_recipe("text-generation", **{"training.packing": False}))
    assert padding_hint([1, 50] * 20, make_recipe(**{"training.group_by_length": True})) is None


def test_grouping_and_packing_contradict_each_other(make_recipe):
    with pytest.raises(RecipeError, match="group_by_length: rows of text-generation share sequences"):
        make_recipe("text-generation", **{"training.group_by_length": True})
