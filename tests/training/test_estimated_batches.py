"""What an estimate takes for a run's batches, where a row brings several texts, or several rows make one sequence."""

from __future__ import annotations

import pytest

from lorary.training.data import load_data
from lorary.training.estimate.plan import estimate
from lorary.training.fitting.trainer import make_trainer
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from samples import WORDS, write_jsonl


def words(count):
    return " ".join(WORDS[place % len(WORDS)] for place in range(count))


PAIRS = {"data.columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"}}


@pytest.mark.parametrize(
    ("task", "settings", "long", "short"),
    [
        ("feature-extraction", {}, {"text": "bank", "positive": words(40)}, {"text": "a bank", "positive": "firm"}),
        ("text-generation", PAIRS, {"prompt": "a", "chosen": "cut", "rejected": words(40)},
         {"prompt": "a", "chosen": "cut the debt", "rejected": "cut"}),
        ("summarization", {}, {"text": "a bank", "summary": words(40)}, {"text": "a bank today", "summary": "a"}),
        ("text-generation", {"training.packing": True}, {"prompt": "a", "completion": words(4)},
         {"prompt": "a", "completion": "bank"}),
    ],
    ids=["positives", "rejected", "targets", "packed"],
)  # fmt: skip
def test_the_largest_batch_has_the_longest_of_what_a_step_reads(task, settings, long, short, make_small, tmp_path):
    """Not of the rows whose first text is: held against the batches of a run, each counted by itself."""
    rows = [dict(long if place % 8 == 0 else short) for place in range(32)]
    files = {part: write_jsonl(tmp_path / f"{part}.jsonl", rows) for part in ("data.train", "data.test")}
    recipe = make_small(task, **files, **{"training.batch_size": 2, "training.max_length": 64, **settings})
    ready = prepare(recipe, load_data(recipe), Reporter())
    trainer = make_trainer(
        ready.model, ready.base.tokenizer, ready.task, ready.train, None, recipe, tmp_path / "checkpoints"
    )
    kinds = ("input_ids", "labels") if task == "summarization" else ("input_ids",)
    tokens = [sum(batch[kind].numel() for kind in kinds) for batch in trainer.get_train_dataloader()]
    planned = estimate(recipe)
    # What is linear in the tokens makes up nearly all of the arithmetic.
    share = planned.cost.flops / planned.cost.step.flops / recipe.training.epochs
    assert share == pytest.approx(sum(tokens) / max(tokens), rel=0.25)
    assert planned.cost.steps == len(tokens) * recipe.training.epochs
    if task == "summarization":
        alone = write_jsonl(tmp_path / "long.jsonl", [{**long, "text": "a bank today"}] * 2)
        recipe = make_small(task, **{**files, "data.train": alone, "training.batch_size": 2, "training.max_length": 64})
        assert planned.cost.step.peak == estimate(recipe).cost.step.peak
    else:
        assert planned.cost.step.tokens >= max(tokens)


@pytest.mark.parametrize(
    ("task", "settings", "row"),
    [
        ("feature-extraction", {}, {"text": "bank", "positive": words(90)}),
        ("text-generation", PAIRS, {"prompt": "a", "chosen": "cut", "rejected": words(90)}),
    ],
)
def test_a_shorter_max_length_takes_less_of_every_text(task, settings, row, make_small, tmp_path):
    rows = [{**row, "positive": f"{word} {words(90)}"} if "positive" in row else row for word in WORDS[:8]]
    files = {part: write_jsonl(tmp_path / f"{part}.jsonl", rows) for part in ("data.train", "data.test")}
    few = {"method": "rslora", "training.batch_size": 2}  # fewer other ways to make it smaller
    recipe = make_small(task, "llama", **files, **few, **{"training.max_length": 128, **settings})
    planned = estimate(recipe, memory=1)
    halved = next(other for other in planned.alternatives if other.settings == ("training.max_length=64",))
    less = planned.cost.kept * planned.cost.step.activations / 4
    assert planned.cost.peak - halved.peak > less
