"""A run stays on the device that its recipe names; transformers would take it to the first GPU."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from lorary.hub.registry import Registry
from lorary.training import train
from lorary.training.fitting import loop
from lorary.training.fitting.own_device import one_device
from lorary.training.pretraining import PretrainRecipe
from lorary.training.pretraining.run import pretrain
from samples import summary_rows, write_jsonl

two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")


def test_a_trainer_goes_by_the_gpu_of_its_model(monkeypatch, tmp_path):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    second = torch.device("cuda", 1)
    model = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=second)]))
    arguments = one_device(TrainingArguments(output_dir=str(tmp_path), use_cpu=True), model)
    assert arguments.device == second
    assert chosen == [second]


@pytest.fixture
def steps(monkeypatch):
    """Where each step was taken, and the process's own GPU in it."""
    found = set()
    begin = loop.StepRows.on_step_begin

    def note(self, *words, model, **more):
        found.add((next(model.parameters()).device, torch.cuda.current_device()))
        return begin(self, *words, model=model, **more)

    monkeypatch.setattr(loop.StepRows, "on_step_begin", note)
    return found


@pytest.mark.gpu
@two_gpus
@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_training_on_the_second_gpu(make_small, tmp_path, steps, task):
    recipe = make_small(task, **{"training.max_steps": 2}).model_copy(update={"device": "cuda:1"})
    train(recipe, Registry(tmp_path / "registry.db"))
    assert steps == {(torch.device("cuda", 1), 1)}
    assert torch.cuda.current_device() == 0


@pytest.mark.gpu
@two_gpus
@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_training_a_base_that_is_spread_over_two_gpus(make_recipe, tmp_path, task):
    """Its loss is computed where its last layer is, and counted where the rows are."""
    spread = dict.fromkeys(["model.embed_tokens", "model.rotary_emb", "model.layers.0"], 0)
    spread |= dict.fromkeys(["model.layers.1", "model.norm", "lm_head", "score"], 1)
    recipe = make_recipe(task, "llama", **{"training.max_steps": 2, "dtype": "float32"})
    alone = train(recipe, Registry(tmp_path / "registry.db"))
    elsewhere = {"device": None, "device_map": spread, "output": str(tmp_path / "spread"), "name": "spread"}
    version = train(recipe.model_copy(update=elsewhere), Registry(tmp_path / "registry.db"))
    assert version.metrics["test"] == pytest.approx(alone.metrics["test"], rel=1e-3)


@pytest.mark.gpu
@two_gpus
def test_pretraining_on_the_second_gpu(tmp_path, steps):
    rows = [{"text": row["text"]} for row in summary_rows(60)]
    flags = {
        "name": "small", "architecture": "llama", "data.train": write_jsonl(tmp_path / "rows.jsonl", rows),
        "device": "cuda:1", "output": str(tmp_path / "out"), "training.max_steps": 2, "model.context": 32,
        "tokenizer.vocab_size": 300,
    }  # fmt: skip
    pretrain(PretrainRecipe.from_flags(flags), Registry(tmp_path / "registry.db"))
    assert steps == {(torch.device("cuda", 1), 1)}
