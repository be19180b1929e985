"""Checkpoints as older versions of PEFT wrote them, against today's PEFT or the formula where that can't read them."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from lorary.adapters import Backbone
from lorary.hub.errors import KeyMismatchError
from methods import make_method
from tiny import make_adapter, make_base, peft_reference, task_class

ROW = [7, 8, 9, 10, 11]
WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def as_then(adapter, rename=lambda key: key, **config):
    """The adapter with other keys and other fields in its config, in place."""
    tensors = load_file(adapter / WEIGHTS)
    save_file({rename(key): tensor for key, tensor in tensors.items()}, adapter / WEIGHTS)
    told = json.loads((adapter / CONFIG).read_text())
    (adapter / CONFIG).write_text(json.dumps(told | config))
    return adapter


def answer(model):
    with torch.no_grad():
        out = model(input_ids=torch.tensor([ROW]))
    return torch.stack([out.start_logits[0], out.end_logits[0]], -1) if "start_logits" in out else out.logits[0]


@pytest.mark.parametrize(
    ("family", "task", "saved"),
    [
        ("bert", "text-classification", None),
        ("roberta", "text-classification", None),
        ("distilbert", "text-classification", None),
        ("gpt2", "text-classification", None),
        ("llama", "text-classification", ["lm_head"]),
        ("bert", "token-classification", None),
        ("bert", "question-answering", None),
    ],
    ids=str,
)
def test_a_head_that_the_config_doesnt_name(bases, tmp_path, family, task, saved):
    """As PEFT up to 0.10 wrote them: the head is in the file alone."""
    adapter = make_adapter(bases(family), tmp_path / "older", task=task)
    want = answer(peft_reference(bases(family), adapter, task=task))
    as_then(adapter, modules_to_save=saved)
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(adapter)
    torch.testing.assert_close(backbone.logits([ROW], "older")[0], want, atol=1e-5, rtol=1e-5)
    assert backbone.stats().slots_used == 1


def test_a_head_of_another_method_that_the_config_doesnt_name(bases, tmp_path):
    adapter = make_method(bases("bert"), tmp_path / "older", "LOHA", task="token-classification")
    want = answer(peft_reference(bases("bert"), adapter, task="token-classification"))
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(as_then(adapter, modules_to_save=None))
    torch.testing.assert_close(backbone.logits([ROW], "older")[0], want, atol=1e-5, rtol=1e-5)


def test_two_such_heads_are_blended(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    for name in ("today", "older"):
        adapter = make_adapter(bases("bert"), tmp_path / name, task="text-classification")
        backbone.load(as_then(adapter, **({} if name == "today" else {"modules_to_save": None})))
    backbone.blend({"today": 0.5, "older": 0.5}, name="both")
    torch.testing.assert_close(backbone.logits([ROW], "both"), backbone.logits([ROW], "today"), atol=1e-5, rtol=1e-5)


def test_a_whole_module_that_isnt_the_tasks_head_stays_unexpected(bases, tmp_path):
    adapter = make_adapter(bases("bert"), tmp_path / "older", task="text-classification")
    as_then(adapter, lambda key: key.replace("classifier", "qa_outputs"), modules_to_save=None)
    with pytest.raises(KeyMismatchError, match=r"unexpected: .*qa_outputs"):
        Backbone.from_pretrained(str(bases("bert"))).load(adapter)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_trained_biases_under_the_modules_own_name(bases, tmp_path, family):
    """Until PEFT 0.6 a module with LoRA kept its bias; PEFT looks under `base_layer` since, and drops the others."""
    task = "text-generation" if family == "gpt2" else "text-classification"
    adapter = make_adapter(bases(family), tmp_path / "older", task=task, bias="lora_only")
    biased = {
        key: torch.randn_like(tensor) if key.endswith(".base_layer.bias") else tensor
        for key, tensor in load_file(adapter / WEIGHTS).items()
    }
    assert any(key.endswith(".base_layer.bias") for key in biased)
    save_file(biased, adapter / WEIGHTS)
    want = answer(peft_reference(bases(family), adapter, task=task))
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(as_then(adapter, lambda key: key.replace(".base_layer.bias", ".bias")))
    torch.testing.assert_close(backbone.logits([ROW], "older")[0], want, atol=1e-5, rtol=1e-5)


def test_biases_that_were_trained_and_not_saved(bases, tmp_path):
    """As PEFT 0.7 to 0.20 left them out."""
    adapter = make_adapter(bases("gpt2"), tmp_path / "older", task="text-generation", bias="lora_only")
    tensors = load_file(adapter / WEIGHTS)
    save_file({key: tensor for key, tensor in tensors.items() if not key.endswith(".bias")}, adapter / WEIGHTS)
    backbone = Backbone.from_pretrained(str(bases("gpt2")))
    with pytest.raises(KeyMismatchError, match=r'missing: .*base_layer\.bias.*are lost; .*"bias": "none"'):
        backbone.load(adapter)
    backbone.load(as_then(adapter, bias="none"))
    assert backbone.stats().slots_used == 1


@pytest.mark.parametrize("settings", [{"lora_dropout": 0.1}, {"use_rslora": True}], ids=str)
def test_factors_of_single_experts(tmp_path, settings):
    """From before transformers fused experts; PEFT refuses a dropout there, and takes rsLoRA's scale times sqrt(2)."""
    base = make_base("mixtral", tmp_path / "base")
    model = AutoModelForCausalLM.from_pretrained(base)
    torch.manual_seed(1)
    tensors, scale = {}, 8 / (2 if settings.get("use_rslora") else 4)
    for layer, block in enumerate(model.model.layers):
        experts = block.mlp.experts
        for expert in range(4):
            places = {"w1": (experts.gate_up_proj, slice(0, 64)), "w3": (experts.gate_up_proj, slice(64, 128))}
            for name, (weight, rows) in (places | {"w2": (experts.down_proj, slice(0, 32))}).items():
                part = weight.data[expert, rows]
                a, b = torch.randn(4, part.shape[1]) / 5, torch.randn(part.shape[0], 4) / 5
                part += scale * (b @ a)
                key = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=["w1", "w2", "w3"], task_type="CAUSAL_LM", **settings)
    config.save_pretrained(tmp_path / "older")
    save_file(tensors, tmp_path / "older" / WEIGHTS)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(tmp_path / "older")
    torch.testing.assert_close(backbone.logits([ROW], "older")[0], answer(model), atol=1e-4, rtol=1e-4)


def test_rslora_through_peft_has_peft_s_numbers(bases, tmp_path):
    """Also with an alpha of a module's own, and beside experts that weren't taken apart."""
    torch.manual_seed(1)
    model = task_class("text-generation").from_pretrained(bases("llama"))
    settings = {"r": 3, "lora_alpha": 5, "use_rslora": True, "alpha_pattern": {"v_proj": 7}, "init_lora_weights": False}
    peft_model = get_peft_model(model, LoraConfig(**settings, trainable_token_indices=[7], task_type="CAUSAL_LM"))
    peft_model.save_pretrained(tmp_path / "own")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(tmp_path / "own")
    assert backbone.stats().slots_used == 0
    torch.testing.assert_close(backbone.logits([ROW], "own")[0], answer(peft_model.eval()), atol=1e-5, rtol=1e-5)
