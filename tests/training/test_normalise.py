"""A step's loss doesn't depend on how its rows are cut into batches."""

from __future__ import annotations

import json

import pytest
import torch

from lorary.training.data import load_data
from lorary.training.one_run import run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from samples import prompt_rows, write_jsonl


@pytest.mark.parametrize("task", ["text-classification", "token-classification", "text-generation", "preference pairs"])
def test_accumulated_batches_make_the_same_adapter_as_one(task, make_recipe, tmp_path):
    """30 rows in steps of 8: the last step of an epoch has 6 rows, in batches of 4 and 2."""
    found = {}
    for size in (8, 4):
        settings = {
            "training.batch_size": size, "training.gradient_accumulation": 8 // size, "training.epochs": 1,
            "lora.dropout": 0.0,
        }  # fmt: skip
        if task == "preference pairs":
            rows = [
                {"prompt": row["prompt"], "chosen": row["prompt"][: 3 + place], "rejected": "sales fell"}
                for place, row in enumerate(prompt_rows(31))
            ]
            settings |= {
                "data.columns": {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
                "data.train": write_jsonl(tmp_path / "pairs.jsonl", rows), "data.test": None, "data.test_size": 0.01,
            }  # fmt: skip
        recipe = make_recipe("text-generation" if task == "preference pairs" else task, rows=30, **settings)
        prepared = prepare(recipe, load_data(recipe), Reporter())
        for module in prepared.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        finished = run(prepared, tmp_path / f"{task}-{size}", Reporter())
        found[size] = (finished.trained.tensors, finished.trained.provenance["curve"])
    for (_, one), (_, other) in zip(found[4][1], found[8][1], strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for key, tensor in found[8][0].items():
        torch.testing.assert_close(found[4][0][key], tensor, rtol=2e-3, atol=2e-4)


def test_the_gradient_of_a_step_is_that_of_one_large_batch(make_recipe, tmp_path):
    """Against torch alone: the cross-entropy of all of a step's tagged words, in one batch."""
    recipe = make_recipe(
        "token-classification", rows=8,
        **{"training.batch_size": 2, "training.gradient_accumulation": 4, "training.max_steps": 1, "lora.dropout": 0.0,
           "training.max_grad_norm": 1e9},
    )  # fmt: skip
    prepared = prepare(recipe, load_data(recipe), Reporter())
    for module in prepared.model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = prepared.task.collator(prepared.base.tokenizer)([dict(feature) for feature in prepared.train.features])
    loss = prepared.model(**batch).loss
    loss.backward()
    norm = torch.nn.utils.get_total_norm([p.grad for p in prepared.model.parameters() if p.grad is not None])
    prepared.model.zero_grad(set_to_none=True)
    finished = run(prepared, tmp_path / "checkpoints", Reporter())
    assert finished.trained.provenance["curve"][0][1] == pytest.approx(loss.item(), rel=1e-5)
    assert float(norm) > 0
    state = json.loads((tmp_path / "checkpoints" / "checkpoint-1" / "trainer_state.json").read_text())
    assert state["log_history"][0]["grad_norm"] == pytest.approx(float(norm), rel=1e-4)
