"""Mixtures of experts: the router's loss is the trainer's affair, and the base answers as it did before."""

from __future__ import annotations

import runpy

import pytest
import torch
import transformers as t

from lorary.hub.errors import TrainingError
from lorary.training import train
from lorary.training.estimate import without_values
from lorary.training.estimate.plan import estimate
from runs import golden, peft_logits, prepared
from samples import bpe_tokenizer, save_base

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 32, "max_position_embeddings": 256, "num_experts_per_tok": 2,
}  # fmt: skip


def base_of(family, folder, asked=False):
    tokenizer = bpe_tokenizer()
    common = {**SIZES, "vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    config = {
        "mixtral": lambda: t.MixtralConfig(**common, num_local_experts=4),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(**common, num_experts=4, moe_intermediate_size=16, head_dim=16),
    }[family]()
    config.output_router_logits = asked
    torch.manual_seed(0)
    return str(save_base(t.AutoModelForCausalLM.from_config(config), tokenizer, folder))


def test_a_prefix_that_the_routers_loss_does_not_know_is_refused(make_recipe, tmp_path):
    recipe = make_recipe("text-generation", base=base_of("mixtral", tmp_path / "base"), method="prefix-tuning")
    with pytest.raises(TrainingError, match="prefix-tuning doesn't train MixtralForCausalLM: its router's loss"):
        prepared(recipe)


def test_a_step_in_full_precision_can_be_estimated(make_recipe, tmp_path):
    """torch plans grouped products, which the experts are, for bfloat16 alone."""
    base = base_of("mixtral", tmp_path / "base")
    whole, half = (
        estimate(make_recipe("text-generation", base=base, dtype=dtype)).cost.step for dtype in ("float32", "bfloat16")
    )
    assert whole.weights == pytest.approx(2 * half.weights, rel=0.01)
    assert whole.flops == half.flops > 0
    assert whole.peak > half.peak


@pytest.mark.parametrize("asked", [False, True], ids=["silent", "asked"])
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_an_adapter_is_trained_on_its_attention(family, asked, make_recipe, registry, tmp_path):
    """Also where the base's own config asks for what its router gives."""
    base = base_of(family, tmp_path / "base", asked)
    recipe = make_recipe("text-generation", base=base, rows=32, **{"training.epochs": 3})
    version = train(recipe, registry)
    assert version.metrics["test"]["loss"] < version.metrics["untrained"]["loss"]
    for found, want in zip(
        peft_logits(tmp_path / "out", base, "text-generation"), golden(tmp_path / "out"), strict=True
    ):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_a_torch_that_cannot_multiply_groups_is_enough(monkeypatch):
    """The oldest that the package allows has neither function."""
    monkeypatch.delattr(torch, "_grouped_mm", raising=False)
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    assert runpy.run_path(without_values.__file__)["_GROUPED"] == ()
