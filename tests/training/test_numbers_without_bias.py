"""Regression on decoders, whose head has no bias: it begins at the mean of the numbers, as near as states allow."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from lorary.hub.errors import InterruptedRunError
from lorary.training import evaluate, train
from lorary.training.tasks.heads.level import Level, final_states
from lorary.training.tasks.heads.scale import last_layer
from runs import SHORT, golden, peft_logits, prepared
from samples import write_jsonl
from stops import Signal


def rows(count: int, mean: float, seed: int = 0) -> list[dict]:
    """Headlines of three to eight words, whose number is how often they say `profit`, about ``mean``."""
    random_ = random.Random(seed)
    texts = [random_.choices(["profit", "sales", "bank", "today"], k=random_.randrange(3, 9)) for _ in range(count)]
    return [{"text": " ".join(words), "label": words.count("profit") - 1.4 + mean + 1e-5} for words in texts]


@pytest.fixture
def make(make_recipe, tmp_path):
    """A recipe for numbers about ``mean``, at the usual learning rate."""

    def recipe(family="gpt2", *, mean=4.0, count=240, **settings):
        files = {
            "data.train": write_jsonl(tmp_path / "numbers.jsonl", rows(count, mean)),
            "data.test": write_jsonl(tmp_path / "held.jsonl", rows(60, mean, seed=9)),
        }
        usual = {"training.epochs": 8, "training.learning_rate": 5e-4, "problem_type": "regression"}
        return make_recipe("text-classification", family, **files, **{**usual, **settings})

    return recipe


@pytest.mark.parametrize(
    ("family", "settings", "share"),
    [
        ("gpt2", {}, 0.8),  # of the mean's own error: 0.73; from zero on it was 0.88,
        ("llama", {"mean": -8.0}, 0.8),  # 0.71, was 1.01
        ("llama", {"dtype": "bfloat16"}, 0.65),  # 0.54, was 0.81
        ("llama", {"method": "qlora", "quantization": "nf4"}, 0.65),  # 0.58, was 0.74
    ],
)
def test_ratings_are_learned_from_their_mean_on(family, settings, share, make, registry):
    """From zero on, many of the same steps went into learning the mean."""
    version = train(make(family, **settings), registry)
    assert version.metrics["test"]["rmse"] < share * version.metrics["mean"]["rmse"]
    assert version.manifest.provenance["curve"][0][1] < 4  # in deviations
    assert not [line for line in version.manifest.provenance["notices"] if "taken off" in line]


def test_the_head_begins_at_the_mean(make):
    ready = prepared(make("llama", mean=5.0))
    task, model, tokenizer = ready.task, ready.model, ready.base.tokenizer
    layer = last_layer(model)
    with task.scaled(model, ready.train, tokenizer):
        found = torch.tensor(task.outcomes(model, ready.train, tokenizer, 16))
        states = final_states(model, layer, task, ready.train, tokenizer)
        answers = (states @ layer.weight[0]).detach() * np.std(ready.train.golds)
    assert found.mean().item() == pytest.approx(np.mean(ready.train.golds), abs=0.1)
    assert found.std().item() < np.std(ready.train.golds)
    torch.testing.assert_close(found.sort().values, answers.sort().values, rtol=1e-5, atol=1e-5)


def test_weights_that_answer_one():
    """Exactly, where a norm's bias allows it; else they miss states that they weren't fitted to by what is told."""
    torch.manual_seed(0)
    norm = torch.nn.LayerNorm(16)
    torch.nn.init.normal_(norm.bias)
    torch.nn.init.uniform_(norm.weight, 0.5, 2)
    exact, unseen = norm(torch.randn(2, 200, 16)).detach()
    level = Level.of(exact)
    assert level.error < 1e-4
    assert (unseen.double() @ level.weights - 1).abs().max() < 1e-4
    for inputs, seen in ((16, 200), (64, 40)):  # fewer states than weights are answered exactly, others aren't
        direction = torch.randn(inputs)
        states = direction + 0.3 * torch.randn(seen + 2000, inputs)
        level = Level.of(states[:seen])
        missed = (states[seen:].double() @ level.weights - 1).square().mean().sqrt().item()
        assert level.error == pytest.approx(missed, rel=0.35)


def test_numbers_far_from_zero_are_told_of(make, registry):
    """Their mean can't be answered as exactly as they differ; the run goes on as well as it can."""
    notices = train(make("llama", mean=290.0, **SHORT), registry).manifest.provenance["notices"]
    (told,) = (line for line in notices if "taken off" in line)
    assert "labels with 289.9 taken off would be learned better" in told


def test_a_run_goes_on_from_another_ones_numbers(make, registry, tmp_path):
    settings = {"lora.dropout": 0.0, "count": 80}
    first = train(make(**settings), registry)
    more = {"from": first.reference, "training.learning_rate": 1e-12, "training.max_steps": 1}
    more["name"] = "more"  # what is the same to the last bit would be the first one's version, with its metrics
    second = train(make(output=str(tmp_path / "more"), **settings, **more), registry)
    rmse = first.metrics["test"]["rmse"]
    assert [second.metrics[split]["rmse"] for split in ("untrained", "test")] == pytest.approx([rmse, rmse], rel=1e-3)


@pytest.mark.parametrize("settings", [{}, {"training.seeds": 2}])
def test_a_broken_run_goes_on_exactly(settings, make, registry, tmp_path):
    settings |= {"count": 24, "training.epochs": 2, "training.early_stopping": 0, "training.checkpoint_steps": 1}
    whole = train(make(**settings), registry)
    recipe = make(output=str(tmp_path / "broken"), **settings)
    with pytest.raises(InterruptedRunError, match=r"step [1234] of"):
        train(recipe, registry, Signal("step 1"))
    assert train(recipe, registry, resume=True).digest == whole.digest


def test_it_is_a_plain_checkpoint(make, registry, tmp_path):
    recipe = make("llama", count=40, **SHORT)
    version = train(recipe, registry)
    tensors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert [name for name in tensors if "lora_" not in name] == ["base_model.model.score.weight"]
    found = torch.cat(peft_logits(tmp_path / "out", recipe.base, "text-classification", dtype=torch.float32))
    torch.testing.assert_close(found, torch.cat(golden(tmp_path / "out")), rtol=1e-4, atol=1e-4)
    assert found.mean().item() == pytest.approx(4, abs=1)
    measured = evaluate([version.reference], recipe.data.test, registry, settings={"device": "cpu"})
    assert measured.adapters[0].metrics["rmse"] == pytest.approx(version.metrics["test"]["rmse"], rel=1e-3)
