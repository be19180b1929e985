"""LoRA's kin on every kind of base: each trains, passes the gate, and is for PEFT what it is here."""

from __future__ import annotations

import pytest
import torch

from lorary.training import train
from lorary.training.fitting.trainer import make_trainer
from runs import SHORT, golden, peft_logits, prepared


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("text-classification", {"method": "dora"}),
        ("token-classification", {"method": "dora"}),
        ("text-generation", {"method": "dora"}),
        ("text-generation", {"method": "rslora"}),
        ("token-classification", {"lora.init": "gaussian"}),
        ("text-classification", {"lora.init": "orthogonal"}),
        ("text-classification", {"lora.init": "eva"}),
        ("token-classification", {"lora.init": "eva"}),
        ("text-generation", {"lora.init": "eva", "method": "dora"}),
        ("text-classification", {"lora.init": "pissa"}),
        (
            "text-generation",
            {"lora.init": "pissa_niter_4", "method": "rslora", "lora.rank_pattern": {"q_proj": 2}},
        ),
        ("text-classification", {"lora.init": "olora", "lora.alpha_pattern": {"query": 5}}),
        ("text-generation", {"lora.init": "olora", "dtype": "bfloat16"}),
        ("text-generation", {"training.lora_plus_ratio": 16.0}),
    ],
    ids=lambda case: case if isinstance(case, str) else "-".join(str(value) for value in case.values()),
)
def test_each_trains_passes_the_gate_and_is_the_same_for_peft(task, settings, make_recipe, registry, tmp_path):
    recipe = make_recipe(task, rows=24, held=4, **SHORT, **settings)
    version = train(recipe, registry)
    assert version.method == settings.get("method", "lora")
    if recipe.dtype != "bfloat16":
        for found, want in zip(peft_logits(tmp_path / "out", recipe.base, task), golden(tmp_path / "out"), strict=True):
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


QUANTIZED = [
    {"method": "qlora", "quantization": "fp4"},
    {"method": "qlora", "double_quantization": False},
    {"method": "dora", "quantization": "nf4"},
    {"quantization": "nf4", "lora.init": "loftq"},
    {"quantization": "int8", "lora.init": "loftq"},
    {"quantization": "nf4", "lora.init": "pissa"},
    {"quantization": "int8", "lora.init": "olora"},
    {"quantization": "nf4", "lora.init": "eva"},
]


@pytest.mark.parametrize("settings", QUANTIZED, ids=lambda settings: "-".join(str(v) for v in settings.values()))
def test_quantized_bases(settings, make_recipe, registry, tmp_path):
    from lorary.adapters.base.quantization import quantization_config

    task = "text-generation"
    recipe = make_recipe(task, rows=24, held=4, **SHORT, **settings)
    version = train(recipe, registry)
    assert version.quantization == recipe.base_quantization
    config = quantization_config(recipe.base_quantization, torch.float32)
    found = peft_logits(tmp_path / "out", recipe.base, task, quantization_config=config)
    for logits, want in zip(found, golden(tmp_path / "out"), strict=True):
        torch.testing.assert_close(logits, want, atol=1e-4, rtol=1e-4)


def test_an_adapter_of_another_4bit_kind_says_so_and_is_not_judged(make_recipe, registry, tmp_path):
    from lorary.adapters import Backbone

    recipe = make_recipe("text-generation", rows=24, held=4, **SHORT, method="qlora", double_quantization=False)
    train(recipe, registry)
    for kind, judged in (("nf4-single", True), ("nf4", None), ("fp4", None)):
        backbone = Backbone.from_pretrained(recipe.base, quantization=kind, device="cpu")
        loaded = backbone.load(tmp_path / "out")
        assert backbone.verify(loaded.name).matches is judged
        told = f"trained on nf4-single weights, served on {kind} ones"
        assert (told in loaded.notes) is (kind != "nf4-single")


def test_lora_plus_trains_b_faster(make_recipe, tmp_path):
    recipe = make_recipe(**{"training.lora_plus_ratio": 8.0, "training.weight_decay": 0.1})
    ready = prepared(recipe)
    trainer = make_trainer(ready.model, ready.base.tokenizer, ready.task, ready.train, None, recipe, tmp_path / "c")
    trainer.create_optimizer()
    names = {parameter: name for name, parameter in ready.model.named_parameters()}
    rates: dict[str, set[float]] = {}
    for group in trainer.optimizer.param_groups:
        for parameter in group["params"]:
            rates.setdefault(names[parameter].split(".")[-3], set()).add(group["lr"])
    assert rates["lora_A"] == {0.01}
    assert rates["lora_B"] == {0.08}
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == sum(
        parameter.requires_grad for parameter in ready.model.parameters()
    )
