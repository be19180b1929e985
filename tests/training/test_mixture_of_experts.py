"""Mixtures of experts: the router's loss is the trainer's affair, and the base answers as it did before."""

from __future__ import annotations

import runpy

import pytest
import torch
import transformers as t
from peft import LoraConfig
from safetensors.torch import load_file

from lorary.hub.errors import RecipeError, TrainingError
from lorary.training import train
from lorary.training.estimate import without_values
from lorary.training.estimate.plan import estimate
from lorary.training.progress import Reporter
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
        "granitemoe": lambda: t.GraniteMoeConfig(**common, num_local_experts=4),
        "glm4_moe": lambda: t.Glm4MoeConfig(
            **common,
            n_routed_experts=4,
            moe_intermediate_size=16,
            n_group=1,
            topk_group=1,
            head_dim=16,
            first_k_dense_replace=1,
        ),
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
@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "granitemoe"])
def test_an_adapter_is_trained_on_its_attention(family, asked, make_recipe, registry, tmp_path):
    """Also where the base's config asks for what its router gives, or has no number of experts that TRL knows."""
    base = base_of(family, tmp_path / "base", asked)
    recipe = make_recipe("text-generation", base=base, rows=32, **{"training.epochs": 2})
    version = train(recipe, registry)
    assert version.metrics["test"]["loss"] < version.metrics["untrained"]["loss"]
    for found, want in zip(
        peft_logits(tmp_path / "out", base, "text-generation"), golden(tmp_path / "out"), strict=True
    ):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


def test_shared_experts_that_peft_takes_for_the_fused_ones_are_left_out(make_recipe, registry, tmp_path):
    """It would train all experts, or, with dropout, refuse the whole model."""
    base, reporter = base_of("glm4_moe", tmp_path / "base"), Reporter()
    recipe = make_recipe("text-generation", base=base, rows=32, **{"training.epochs": 2})
    version = train(recipe, registry, reporter)
    assert any(
        notice.startswith("left out: down_proj (2), gate_proj (2), up_proj (2); PEFT takes its name")
        for notice in reporter.notices
    )
    assert version.metrics["test"]["loss"] < version.metrics["untrained"]["loss"]
    config = LoraConfig.from_pretrained(tmp_path / "out")
    assert {name.rpartition(".")[2] for name in config.target_modules} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    assert not config.target_parameters
    for found, want in zip(
        peft_logits(tmp_path / "out", base, "text-generation"), golden(tmp_path / "out"), strict=True
    ):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)
    with pytest.raises(
        TrainingError,
        match=r"targets q_proj, up_proj matches up_proj \(2\), and PEFT takes its name .* with lora\.exclude",
    ):
        prepared(make_recipe("text-generation", base=base, output="other", **{"lora.targets": ["q_proj", "up_proj"]}))


def test_layers_that_mamba_reads_by_itself_are_left_out(make_recipe, tmp_path):
    """PEFT puts no LoRA on them, and refused a recipe that says nothing of targets."""
    tokenizer = bpe_tokenizer()
    torch.manual_seed(0)
    config = t.FalconMambaConfig(vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, state_size=4)
    base = str(save_base(t.AutoModelForCausalLM.from_config(config), tokenizer, tmp_path / "base"))
    model = prepared(make_recipe("text-generation", base=base)).model
    adapted = {name.rpartition(".")[2] for name in model.peft_config["default"].target_modules}
    assert {"in_proj", "x_proj"} <= adapted
    assert "out_proj" not in adapted
    excluded = make_recipe("text-generation", base=base, output="other", **{"lora.exclude": ["out_proj"]})
    assert prepared(excluded).model.peft_config["default"].target_modules


def test_a_torch_that_cannot_multiply_groups_is_enough(monkeypatch):
    """The oldest that the package allows has neither function."""
    monkeypatch.delattr(torch, "_grouped_mm", raising=False)
    monkeypatch.delattr(torch.nn.functional, "grouped_mm", raising=False)
    assert runpy.run_path(without_values.__file__)["_GROUPED"] == ()


EXPERTS = {"experts.down_proj", "experts.gate_up_proj"}


@pytest.mark.parametrize(
    ("family", "settings", "adapted"),
    [
        ("mixtral", {"lora.parameters": "experts"}, EXPERTS),
        ("qwen3_moe", {"lora.parameters": "experts", "quantization": "nf4"}, EXPERTS),
        ("qwen3_moe", {"lora.parameters": "experts", "quantization": "int8", "method": "rslora"}, EXPERTS),
        ("qwen3_moe", {"lora.parameters": ["experts.gate_up_proj"], "lora.targets": []}, {"experts.gate_up_proj"}),
        (
            "mixtral",
            {"lora.parameters": r".*\.(gate\.weight|down_proj)", "lora.targets": ["q_proj"]},
            {"gate.weight", "experts.down_proj"},
        ),
        ("glm4_moe", {"lora.parameters": "experts", "lora.layers": "last 1", "training.lora_plus_ratio": 4}, EXPERTS),
        ("granitemoe", {"lora.parameters": "experts", "lora.rank_pattern": {"gate_up_proj": 2}}, EXPERTS),
    ],
)
def test_an_adapter_is_trained_on_the_fused_experts(family, settings, adapted, make_recipe, registry, tmp_path):
    base = base_of(family, tmp_path / "base")
    recipe = make_recipe("text-generation", base=base, rows=32, **{"training.epochs": 2, **settings})
    version = train(recipe, registry)
    assert version.metrics["test"]["loss"] < version.metrics["untrained"]["loss"]
    config = LoraConfig.from_pretrained(tmp_path / "out")
    assert config.lora_dropout == 0
    assert {".".join(name.split(".")[-2:]) for name in config.target_parameters} == adapted
    factors = load_file(tmp_path / "out" / "adapter_model.safetensors")
    learned = [tensor for key, tensor in factors.items() if ".lora_B" in key]
    assert len(learned) == len(config.target_modules) + len(config.target_parameters)
    assert all(tensor.abs().max() > 0 for tensor in learned)
    if "lora.rank_pattern" in settings:
        assert {tensor.shape[1] for tensor in learned} == {4, 4 * 4, 4 * 2}  # of each of the four experts
    quantized = {
        "nf4": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": torch.float32,
        },
        "int8": {"load_in_8bit": True},
    }.get(settings.get("quantization"))
    options = {"quantization_config": t.BitsAndBytesConfig(**quantized)} if quantized else {}
    for found, want in zip(
        peft_logits(tmp_path / "out", base, "text-generation", **options), golden(tmp_path / "out"), strict=True
    ):
        torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"lora.parameters": ["gate_upproj"]},
            r"lora.parameters: no parameter is called 'gate_upproj'; did you mean 'gate_up_proj'\?; "
            r"there are down_proj \(2\), gate.weight \(2\), gate_up_proj \(2\)",
        ),
        ({"lora.parameters": "no.*"}, r"lora.parameters 'no.\*' matches no parameter; there are down_proj \(2\), gate"),
        ({"lora.parameters": "experts", "lora.layers": [2]}, "asks for layers that aren't there"),
        (
            {"lora.targets": ["down_proj"]},
            r"no linear layer is .*; and parameters, for lora.parameters: down_proj \(2\)",
        ),
    ],
)
def test_parameters_that_the_base_does_not_have_are_named(settings, message, make_recipe, tmp_path):
    base = base_of("qwen3_moe", tmp_path / "base")
    with pytest.raises(TrainingError, match=message):
        prepared(make_recipe("text-generation", base=base, **settings))


def test_parameters_are_counted_by_an_estimate(make_recipe, tmp_path):
    recipe = make_recipe(
        "text-generation", base=base_of("qwen3_moe", tmp_path / "base"), **{"lora.parameters": "experts"}
    )
    trained = sum(p.numel() for p in prepared(recipe).model.parameters() if p.requires_grad)
    step = estimate(recipe).cost.step
    assert step.adapter == 4 * 4 * trained  # in float32, with the gradient and the optimizer's two moments
    assert (
        step.activations
        > estimate(
            recipe.model_copy(update={"lora": recipe.lora.model_copy(update={"parameters": None})})
        ).cost.step.activations
    )


def test_layers_are_counted_as_those_of_the_base(make_recipe, tmp_path):
    """GLM's first layer is dense."""
    recipe = make_recipe(
        "text-generation", base=base_of("glm4_moe", tmp_path / "base"), **{"lora.parameters": "experts"}
    )

    def within(layers):
        lora = recipe.lora.model_copy(update={"layers": layers})
        return prepared(recipe.model_copy(update={"lora": lora})).model.peft_config["default"].target_parameters

    assert len(within((1,))) == len(within((0, 1))) == len(within(None)) == 2
    with pytest.raises(TrainingError, match=r"lora.layers leaves none of the parameters that lora.parameters names"):
        within("first 1")


def test_a_base_without_experts_has_none_to_adapt(make_recipe):
    with pytest.raises(TrainingError, match="LlamaForCausalLM has no parameters but those of its layers"):
        prepared(make_recipe("text-generation", **{"lora.parameters": "experts"}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lora.parameters": "expert"}, "expected 'experts', a list of names or .*, found 'expert'; did you mean"),
        ({"lora.parameters": "(a.b"}, "isn't a regular expression"),
        ({"lora.parameters": []}, "lora.parameters: the list is empty"),
        ({"lora.targets": []}, "lora.targets: the list is empty"),
        ({"lora.parameters": "experts", "lora.dropout": 0.1}, "lora.dropout: PEFT has none on parameters"),
        ({"lora.parameters": "experts", "method": "dora"}, "lora.parameters: PEFT has no DoRA on parameters"),
        ({"lora.parameters": "experts", "lora.init": "pissa"}, "lora.init: 'pissa' isn't for parameters"),
        ({"lora.parameters": "experts", "from": "other@1"}, "lora.parameters: .* can't start from another one"),
        ({"target_parameters": ["experts"]}, "here it is called 'lora.parameters'"),
    ],
)
def test_what_an_adapter_of_parameters_cannot_be_is_named(settings, message, make_recipe):
    with pytest.raises(RecipeError, match=message):
        make_recipe("text-generation", **settings)
