"""What the adapter begins as: PEFT's values, on a base whose bytes stay as they are."""

from __future__ import annotations

import dataclasses
import sys

import pytest
import torch
from peft import EvaConfig, LoraConfig

from lorary.adapters.base.quantization import dense_weight
from lorary.hub.checkpoint import read_checkpoint
from lorary.training import train
from lorary.training.model import settle
from lorary.training.model.eva import _masks, inputs_that_count
from runs import SHORT, answers, batch_of, prepared


# PEFT's OLoRA knows no Conv1D, as GPT-2 has them: it decomposes the weight the wrong way round, and fails.
@pytest.mark.parametrize(("family", "init"), [("llama", "pissa"), ("llama", "olora"), ("gpt2", "pissa")])
def test_taking_from_the_weights_is_what_peft_does_without_touching_them(init, family, make_recipe, bases):
    """The factors are PEFT's own, the first answer the base's, and training moves nothing but the adapter."""
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM

    recipe = make_recipe("text-generation", family, rows=16, **{"lora.init": init, "lora.dropout": 0.0})
    base = AutoModelForCausalLM.from_pretrained(recipe.base)
    ready = prepared(recipe)
    batch = batch_of(ready)
    torch.testing.assert_close(answers(ready.model, batch), answers(base, batch), atol=1e-4, rtol=1e-4)
    with ready.model.disable_adapter():
        assert torch.equal(answers(ready.model, batch), answers(base, batch))

    targets = sorted(ready.model.peft_config["default"].target_modules)
    config = LoraConfig(r=4, lora_alpha=8, target_modules=targets, init_lora_weights=init, task_type="CAUSAL_LM")
    theirs = get_peft_model(AutoModelForCausalLM.from_pretrained(recipe.base), config)
    own, want = (
        {name: p for name, p in model.named_parameters() if "lora_" in name} for model in (ready.model, theirs)
    )
    assert own.keys() == want.keys()
    for name, parameter in own.items():
        torch.testing.assert_close(parameter, want[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(answers(ready.model, batch), answers(theirs, batch), atol=1e-4, rtol=1e-4)

    for ours, other in zip(own.values(), want.values(), strict=True):
        change = torch.randn(ours.shape) * 0.1
        ours.data += change
        other.data += change
    trained = answers(ready.model, batch)
    torch.testing.assert_close(trained, answers(theirs, batch), atol=1e-4, rtol=1e-4)
    settle(ready.model)
    torch.testing.assert_close(answers(ready.model, batch), trained, atol=1e-4, rtol=1e-4)
    assert ready.model.peft_config["default"].r == 8
    plain = ready.model.unload()
    for name, parameter in base.named_parameters():
        assert torch.equal(plain.get_parameter(name), parameter), name
    assert torch.equal(answers(plain, batch), answers(base, batch))


@pytest.mark.parametrize("init", ["corda", "corda_kpm"])
def test_corda_is_pefts_on_the_training_rows(init, make_recipe, monkeypatch):
    """PEFT's preprocessing sees one row without padding at a time, so ours is asked for batches of one."""
    # PEFT 0.21 takes its dataclass from a package that it doesn't depend on.
    monkeypatch.setitem(sys.modules, "attr", dataclasses)
    from peft import get_peft_model
    from peft.tuners.lora.config import CordaConfig
    from peft.tuners.lora.corda import preprocess_corda
    from transformers import AutoModel

    settings = {"lora.init": init, "lora.dropout": 0.0, "training.batch_size": 1, "lora.targets": "attention"}
    recipe = make_recipe(rows=12, **settings)
    ready = prepared(recipe)
    batch = batch_of(ready)
    begun = answers(ready.model, batch)
    with ready.model.disable_adapter():
        torch.testing.assert_close(begun, answers(ready.model, batch), atol=1e-4, rtol=1e-4)
    base = AutoModel.from_pretrained(recipe.base)
    targets = [path.removeprefix("bert.") for path in ready.model.peft_config["default"].target_modules]
    config = LoraConfig(
        r=4, lora_alpha=8, target_modules=sorted(targets), init_lora_weights="corda",
        corda_config=CordaConfig(corda_method="kpm" if init == "corda_kpm" else "ipm"),
    )  # fmt: skip

    def look():
        for feature in ready.train.features:
            base(**{name: torch.tensor([ids]) for name, ids in feature.items() if name != "labels"})

    preprocess_corda(base, config, run_model=look)
    theirs = get_peft_model(base, config)
    own, want = (
        {path.partition("encoder.")[2]: module for path, module in model.named_modules() if hasattr(module, "lora_A")}
        for model in (ready.model, theirs)
    )
    assert own.keys() == want.keys()
    for path, layer in own.items():
        # Which of a pair of singular vectors is turned round is nobody's choice; their product is.
        products = [one.lora_B["default"].weight @ one.lora_A["default"].weight for one in (layer, want[path])]
        torch.testing.assert_close(*products, atol=2e-3, rtol=2e-2)


@pytest.mark.parametrize(("task", "method"), [("text-classification", "lora"), ("text-generation", "qlora")])
def test_corda_is_saved_as_plain_lora(task, method, make_recipe, registry, tmp_path):
    version = train(make_recipe(task, rows=24, method=method, **SHORT, **{"lora.init": "corda"}), registry)
    config = read_checkpoint(tmp_path / "out").config
    assert (config["r"], config["init_lora_weights"]) == (8, True)
    assert "corda is saved as plain LoRA of twice the rank" in " ".join(version.manifest.provenance["notices"])


def test_pefts_own_conversion_loses_the_head(make_recipe, tmp_path):
    """Why the conversion isn't PEFT's: it saves the factors alone. Should that be mended, ours could go."""
    from peft import get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    base = AutoModelForSequenceClassification.from_pretrained(make_recipe().base, num_labels=2)
    config = LoraConfig(r=4, target_modules=["query"], init_lora_weights="olora", task_type="SEQ_CLS")
    model = get_peft_model(base, config)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "initial")
    model.save_pretrained(tmp_path / "done", path_initial_model_for_weight_conversion=str(tmp_path / "initial"))
    assert not any("classifier" in key for key in load_file(tmp_path / "done" / "adapter_model.safetensors"))


def test_loftq_makes_up_for_what_quantizing_lost(make_recipe):
    """With the adapter each weight is nearer to the full-precision one than without."""
    from transformers import AutoModelForCausalLM

    recipe = make_recipe("text-generation", rows=16, layers=2, quantization="nf4", **{"lora.init": "loftq"})
    whole, model = AutoModelForCausalLM.from_pretrained(recipe.base), prepared(recipe).model
    layers = {n: m for n, m in model.get_base_model().named_modules() if hasattr(m, "lora_A")}
    assert len(layers) == 14
    for name, layer in layers.items():
        lost = whole.get_submodule(name).weight - dense_weight(layer.get_base_layer())
        made_up = lost - layer.get_delta_weight("default")
        assert made_up.norm() < 0.95 * lost.norm()


def test_eva_gives_out_the_ranks_anew_and_repeats_itself(make_recipe, registry, tmp_path):
    recipe = make_recipe("text-classification", rows=64, layers=2, **{"lora.init": "eva"})
    layers = []
    for _ in range(2):
        model = prepared(recipe).model
        layers.append({n: m.lora_A["default"].weight for n, m in model.named_modules() if hasattr(m, "lora_A")})
    assert all(torch.equal(layers[0][name], layers[1][name]) for name in layers[0])
    ranks = {name: len(a) for name, a in layers[0].items()}
    assert sum(ranks.values()) == 13 * 4
    assert len(set(ranks.values())) > 1
    for a in layers[0].values():  # directions of a principal component analysis
        torch.testing.assert_close(a @ a.T, torch.eye(len(a)), atol=1e-4, rtol=0)
    train(make_recipe("text-classification", rows=64, layers=2, **SHORT, **{"lora.init": "eva"}), registry)
    assert read_checkpoint(tmp_path / "out").config["rank_pattern"]


@pytest.mark.parametrize("init", ["eva", "corda"])
def test_what_looks_at_the_rows_sees_each_text_of_a_pair(init, make_recipe):
    """A batch of embeddings' rows is [rows, texts, tokens], which only the task's loss knows to take apart."""
    model = prepared(make_recipe("feature-extraction", rows=40, **{"lora.init": init})).model
    layers = [module for module in model.modules() if hasattr(module, "lora_A")]
    assert layers
    for layer in layers:
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        if init == "eva":  # directions of a principal component analysis
            torch.testing.assert_close(a @ a.T, torch.eye(len(a)), atol=1e-4, rtol=0)
        else:
            assert (b @ a).norm() > 0


def test_eva_passes_over_padding(make_recipe):
    """A row's directions are those of its tokens, however long its batch mates are."""
    config = EvaConfig()
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    values = torch.arange(12.0).reshape(2, 3, 2)
    peft_config = LoraConfig(eva_config=config, init_lora_weights="eva", task_type="CAUSAL_LM")
    (all_tokens,) = _masks({"attention_mask": mask}, peft_config)
    assert (
        inputs_that_count((values,), [all_tokens], "layer").tolist() == values.reshape(6, 2)[[0, 1, 3, 4, 5]].tolist()
    )
    labels = torch.tensor([[-100, 1, -100], [-100, -100, 1]])
    (learned,) = _masks({"attention_mask": mask, "labels": labels}, peft_config)
    assert learned.tolist() == [[False, True, False], [False, False, True]]
    assert inputs_that_count(values[:, 0], [all_tokens], "pooler").shape == (2, 2)
