"""A loss or gradients that aren't numbers end the run with the step, its rows and the likely causes."""

from __future__ import annotations

import re

import pytest
import torch

from lorary.hub.errors import TrainingError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.fitting.fit import fit
from lorary.training.interrupt import Stops
from lorary.training.one_run import run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter

HOT = {"training.learning_rate": 1.0, "training.epochs": 50, "training.max_grad_norm": 1e30, "lora.alpha": 1e12}


def test_a_diverging_run_names_its_step_rows_rate_and_causes(make_recipe, registry, tmp_path):
    with pytest.raises(TrainingError) as caught:
        train(make_recipe(rows=20, **HOT, **{"training.batch_size": 4}), registry)
    message = str(caught.value)
    assert re.search(r"the (loss|grad_norm) became (nan|inf) at step \d+ of \d+, learning rate [\d.e-]+, on ", message)
    assert message.count("train.jsonl, row ") == 4
    assert "Likely causes: too large a step: lower training.learning_rate (1), or raise training.warmup" in message
    assert not registry.path.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation"])
def test_the_rows_are_those_whose_loss_is_not_a_number(task, make_recipe, tmp_path):
    """One row has a token whose embedding is damaged; with accumulation, only its batch is named."""
    recipe = make_recipe(
        task, rows=24, **{"training.batch_size": 2, "training.gradient_accumulation": 4, "training.seed": 3}
    )
    prepared = prepare(recipe, load_data(recipe), Reporter())
    counts: dict[int, list[int]] = {}
    for index, feature in enumerate(prepared.train.features):
        for token in set(feature["input_ids"]):
            counts.setdefault(token, []).append(index)
    # A token that only one row has, or the rarest.
    token, rows = min(counts.items(), key=lambda item: len(item[1]))
    with torch.no_grad():
        prepared.model.get_input_embeddings().weight[token] = float("nan")
    with pytest.raises(TrainingError, match=r"became nan at step \d+ of") as caught:
        fit(
            prepared.model, prepared.base.tokenizer, prepared.task, prepared.train, None, recipe,
            folder=tmp_path / "checkpoints", reporter=Reporter(), stops=Stops(),
        )  # fmt: skip
    named = str(caught.value).split(", on ")[1].split(". Likely")[0]
    assert any(named.count(f"{prepared.train.examples[row].place}") for row in rows)
    assert named.count("row ") <= 2 * len(rows)
    if "step 1 of" in str(caught.value):
        assert "at the first step also a base whose weights are damaged" in str(caught.value)


def test_a_base_with_damaged_weights_is_found_before_training(make_recipe, tmp_path):
    recipe = make_recipe(rows=20)
    prepared = prepare(recipe, load_data(recipe), Reporter())
    with torch.no_grad():
        prepared.model.get_input_embeddings().weight[2] = float("nan")  # [CLS], which each row has
    with pytest.raises(TrainingError, match=r"what the model makes of .*test.jsonl, row \d+ isn't a number"):
        run(prepared, tmp_path / "checkpoints", Reporter())
