"""Memory that runs out: smaller batches, the same steps, and an end with advice when one row is too much."""

from __future__ import annotations

import json

import pytest
from transformers import AlbertConfig, AlbertModel

from lorary.hub.errors import InterruptedRunError, TrainingError
from lorary.training import train
from lorary.training.estimate.plan import estimate
from lorary.training.fitting.memory_fallback import Batching
from lorary.training.progress import Reporter
from memory import memory_for
from samples import save_base, wordpiece_tokenizer, write_jsonl
from stops import Signal

STEPS = {"training.batch_size": 12, "training.gradient_accumulation": 1, "lora.dropout": 0.2}


def test_a_batch_that_does_not_fit_is_halved_until_it_does(make_recipe, registry, tmp_path):
    same = train(
        make_recipe(rows=40, **{**STEPS, "training.batch_size": 3, "training.gradient_accumulation": 4}), registry
    )
    reporter = Reporter()
    with memory_for(4):
        version = train(make_recipe(rows=40, output=str(tmp_path / "b"), **STEPS), registry, reporter)
    assert [line for line in reporter.notices if "memory ran out" in line] == [
        "memory ran out with 12 rows at a time: going on with training.batch_size 6 and "
        "training.gradient_accumulation 2, which makes steps of the same rows",
        "memory ran out with 6 rows at a time: going on with training.batch_size 3 and "
        "training.gradient_accumulation 4, which makes steps of the same rows",
    ]
    assert version.digest == same.digest
    notices = json.loads((tmp_path / "b" / "lorary.json").read_text())["provenance"]["notices"]
    assert any(line.startswith("memory ran out with 12 rows") for line in notices)


def test_it_goes_on_from_the_last_checkpoint_and_a_stopped_run_keeps_the_smaller_batch(make_recipe, registry, tmp_path):
    recipe = make_recipe(rows=36, **{**STEPS, "training.epochs": 4, "training.checkpoint_steps": 1})
    reporter = Signal("step 8")
    with memory_for(6, after=4), pytest.raises(InterruptedRunError, match="step 8 of 12 is kept"):
        train(recipe, registry, reporter)
    assert any(line.startswith("going on after step 4 of 12") for line in reporter.notices)
    again = Reporter()
    with memory_for(6):
        version = train(recipe, registry, again, resume=True)
    assert not any("memory ran out" in line for line in again.notices)
    assert version.manifest.provenance["steps"] == 12


def test_one_row_that_does_not_fit_ends_the_run_with_advice(make_recipe, registry, tmp_path):
    with (
        memory_for(0),
        pytest.raises(TrainingError, match="memory ran out with one row at a time; lower"),
    ):
        train(make_recipe(rows=40, **STEPS), registry)
    assert not registry.path.exists()
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(("columns", "fewest"), [((), 2), (("negative",), 1)])
def test_a_pair_alone_has_nothing_to_be_told_from(columns, fewest, make_small, registry, tmp_path):
    rows = [{"text": f"the bank {n}", "positive": f"a bank {n}", "negative": f"a dog {n}"} for n in range(16)]
    kept = [{key: text for key, text in row.items() if key != "negative" or key in columns} for row in rows]
    data = {"data.train": write_jsonl(tmp_path / "pairs.jsonl", kept), "data.test": None}
    roles = {f"data.columns.{key}": key for key in kept[0]}
    recipe = make_small("feature-extraction", **data, **roles, **{"training.batch_size": 4, "data.test_size": 0.25})
    words = "2 rows at a time, and fewer have nothing to be told from" if fewest == 2 else "one row at a time"
    with memory_for(0), pytest.raises(TrainingError, match=f"memory ran out with {words}; lower"):
        train(recipe, registry)


@pytest.mark.parametrize("after", [0, 2])
def test_three_pairs_that_do_not_fit_become_two(after, make_small, registry, tmp_path):
    rows = [{"text": f"the bank {n}", "positive": f"a bank {n}"} for n in range(16)]
    data = {"data.train": write_jsonl(tmp_path / "pairs.jsonl", rows), "data.test": None, "data.test_size": 0.25}
    roles = {f"data.columns.{key}": key for key in rows[0]}
    steps = {"training.batch_size": 3, "training.checkpoint_steps": 1}
    reporter = Reporter()
    with memory_for(4, after=after):  # texts and positives
        version = train(make_small("feature-extraction", **data, **roles, **steps), registry, reporter)
    assert [line for line in reporter.notices if "memory ran out" in line] == [
        "memory ran out with 3 rows at a time: going on with training.batch_size 2 and "
        "training.gradient_accumulation 2, which makes steps of 4 rows in place of 3"
    ]
    assert any(line.startswith("going on after step") for line in reporter.notices) == (after > 0)
    assert version.manifest.provenance["steps"] == 6


def test_a_base_that_keeps_all_for_the_backward_pass(make_recipe, registry, tmp_path):
    """Told before anything is measured or trained."""
    tokenizer = wordpiece_tokenizer()
    sizes = {"hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 64, "embedding_size": 16}
    model = AlbertModel(AlbertConfig(vocab_size=len(tokenizer), num_hidden_layers=2, **sizes))
    base = str(save_base(model, tokenizer, tmp_path / "base"))
    with pytest.raises(TrainingError, match=r"gradient_checkpointing: transformers can't do that for AlbertFor"):
        train(make_recipe(base=base, **{"training.gradient_checkpointing": True}), registry)
    instead = estimate(make_recipe(base=base), memory=2**20).alternatives
    assert instead
    assert not any("gradient_checkpointing" in setting for other in instead for setting in other.settings)


def test_measuring_goes_on_in_smaller_batches_too(make_recipe, registry, tmp_path):
    whole = train(make_recipe(rows=40, **STEPS), registry)
    reporter = Reporter()
    with memory_for(3, training=False):
        version = train(make_recipe(rows=40, output=str(tmp_path / "b"), **STEPS), registry, reporter)
    assert "memory ran out: the held-out rows are measured 3 at a time" in reporter.notices
    assert version.digest == whole.digest


@pytest.mark.parametrize(("size", "smaller"), [(16, 8), (12, 6), (15, 6), (9, 3), (7, 2), (3, 1), (2, 1)])
def test_smaller_batches_make_steps_of_the_same_rows(size, smaller):
    assert Batching(size, 2).smaller(1) == Batching(smaller, 2 * size // smaller)
    assert Batching(1, 4).smaller(1) is None


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 1), (4, 2)), ((4, 1), (2, 2)), ((3, 2), (2, 3)), ((9, 1), (3, 3)), ((3, 1), (2, 2)), ((5, 1), (2, 3))],
)
def test_the_least_batch_is_tried_though_a_step_may_get_a_row_more(before, after):
    assert Batching(*before).smaller(2) == Batching(*after)
    assert Batching(2, 4).smaller(2) is None


def test_what_was_written_down_of_it_and_was_edited_is_one_error(make_recipe, tmp_path):
    training = make_recipe().training
    Batching(2, 8).keep(tmp_path)
    assert Batching.of(training, tmp_path) == Batching(2, 8)
    (tmp_path / "batching.json").write_text('{"size": "2", "accumulation": 8}')
    with pytest.raises(TrainingError, match=r"batching\.json: size: expected a whole number from 1 on, found '2'; put"):
        Batching.of(training, tmp_path)
