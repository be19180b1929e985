"""PEFT's other methods: each trains, passes the gate, and PEFT alone loads the folder to the same logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from lorary.adapters.matching.methods import REFUSED, THROUGH_PEFT
from lorary.adapters.through_peft.view import UnpaddedPasses
from lorary.hub.errors import RecipeError, TrainingError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.estimate.plan import estimate
from lorary.training.model import take_off
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.recipe.methods import LORA_METHODS, NOT_TRAINED, PEFT_METHODS
from runs import SHORT, batch_of, golden, peft_logits, prepared

SETTINGS = {
    "c3a": {"block_size": 8},
    "fourierft": {"n_frequency": 20},
    "miss": {"r": 4},
    "p-tuning": {"num_virtual_tokens": 4, "encoder_hidden_size": 16},
    "prefix-tuning": {"num_virtual_tokens": 4},
    "prompt-tuning": {"num_virtual_tokens": 4},
    "psoft": {"r": 4},
    "road": {"group_size": 8},
    "shira": {"r": 4},
    "trainable-tokens": {"token_indices": list(range(2, 300))},
    "vblora": {"vector_length": 8, "num_vectors": 16, "topk": 2},
    "waveft": {"n_frequency": 20},
}
"""What a method needs to fit a model of hidden size 32."""


def recipe_of(make_recipe, method, task, **more):
    settings = {f"peft.{key}": value for key, value in SETTINGS.get(method, {}).items()}
    return make_recipe(task, rows=32, method=method, **SHORT, **{**settings, **more})


@pytest.mark.parametrize(
    ("task", "method", "quantization"),
    [
        ("text-classification", "ia3", "none"),
        ("text-classification", "ln-tuning", "none"),
        ("text-classification", "prompt-tuning", "none"),
        ("token-classification", "loha", "none"),
        ("token-classification", "prefix-tuning", "none"),
        ("fill-mask", "loha", "none"),
        ("fill-mask", "ia3", "int8"),
        ("text-generation", "ia3", "nf4"),
        ("text-generation", "oft", "nf4"),
        ("text-generation", "p-tuning", "none"),
        ("text-generation", "prompt-tuning", "int8"),
        ("text-generation", "trainable-tokens", "none"),
    ],
)
def test_it_trains_passes_the_gate_and_is_the_same_for_peft(
    task, method, quantization, make_recipe, registry, tmp_path
):
    recipe = recipe_of(make_recipe, method, task, quantization=quantization)
    version = train(recipe, registry)
    assert (version.method, version.quantization) == (method, quantization)
    assert version.manifest.provenance["recipe"].get("lora") is None
    if quantization == "none":
        for found, want in zip(peft_logits(tmp_path / "out", recipe.base, task), golden(tmp_path / "out"), strict=True):
            torch.testing.assert_close(found, want, atol=1e-5, rtol=1e-4)


def test_ia3_comes_off_a_head_of_several_layers(make_recipe):
    """PEFT's own way back looks for the weight of the head as a whole, which RoBERTa's, T5's and BART's don't have."""
    ready = prepared(recipe_of(make_recipe, "ia3", "text-classification", family="roberta"))
    plain = take_off(ready.model, ready.base)
    assert type(plain.classifier).__name__ == "RobertaClassificationHead"
    assert not any(hasattr(module, "base_layer") for module in plain.modules())
    assert not hasattr(plain, "peft_config")


FEW_WORDS = {"generation.rows": 1, "training.max_target_length": 4}


def test_virtual_tokens_on_an_encoder_decoder_leave_rows_of_any_length_what_they_are_alone(make_recipe):
    ready = prepared(recipe_of(make_recipe, "prompt-tuning", "summarization", **FEW_WORDS))
    ready.model.eval()
    ids = batch_of(ready)["input_ids"][:3]
    width = ids.shape[1]
    lengths = [width, width - 2, width - 1]
    mask = torch.tensor([[1] * length + [0] * (width - length) for length in lengths])
    start = torch.arange(width).repeat(3, 1)  # as many of the decoder's as of the text's, by chance
    with torch.no_grad():
        made = UnpaddedPasses(ready.model, each_row_alone=False)(
            input_ids=ids, attention_mask=mask, decoder_input_ids=start
        )
        for row, length in enumerate(lengths):
            text = {"input_ids": ids[row : row + 1, :length], "attention_mask": mask[row : row + 1, :length]}
            alone = ready.model(**text, decoder_input_ids=start[:1]).logits[0]
            torch.testing.assert_close(made.logits[row], alone, rtol=1e-5, atol=1e-5)


def test_prompt_tuning_trains_an_encoder_decoder_to_rewrite(make_recipe, registry):
    version = train(recipe_of(make_recipe, "prompt-tuning", "summarization", **FEW_WORDS), registry)
    assert version.method == "prompt-tuning"


def test_virtual_tokens_before_a_classifier_on_an_encoder_decoder_are_refused(make_recipe):
    with pytest.raises(TrainingError, match="which T5ForSequenceClassification doesn't take; use method: lora, or ia3"):
        prepared(recipe_of(make_recipe, "prompt-tuning", "text-classification", family="t5"))


@pytest.mark.parametrize("method", PEFT_METHODS)
def test_each_goes_onto_a_base_and_off_again(method, make_recipe):
    """With the settings that a recipe leaves out, but for sizes that don't fit a tiny model."""
    ready = prepared(recipe_of(make_recipe, method, "text-generation"))
    assert sum(p.numel() for p in ready.model.parameters() if p.requires_grad) > 0
    plain = take_off(ready.model, ready.base)
    assert type(plain).__name__ == "LlamaForCausalLM"
    assert not any(hasattr(module, "base_layer") for module in plain.modules())


def test_every_method_of_peft_is_in_the_tables():
    names = {name.lower().replace("_", "-") for name in (*THROUGH_PEFT, *REFUSED)}
    assert {*PEFT_METHODS, *NOT_TRAINED} == names
    page = (Path(__file__).parents[2] / "docs" / "methods.md").read_text()
    assert all(f"`{name}`" in page for name in names)
    assert not {*PEFT_METHODS} & {*NOT_TRAINED, *LORA_METHODS}
    assert all(facts.peft_type in THROUGH_PEFT for facts in PEFT_METHODS.values())


def test_virtual_tokens_take_some_of_the_bases_positions(make_recipe):
    reporter = Reporter()
    recipe = recipe_of(make_recipe, "prompt-tuning", "text-classification")
    ready = prepare(recipe, load_data(recipe), reporter)
    assert ready.max_length == 60
    assert "the base takes 60 tokens, training.max_length asks for 64: 60 are used" in reporter.notices


@pytest.mark.parametrize(("task", "family", "left"), [("translation", "bart", 60), ("summarization", "gpt2", 200)])
def test_virtual_tokens_take_some_of_a_targets_positions(task, family, left, make_recipe):
    """A prefix stands before the target of an encoder-decoder, and before the text that a target follows."""
    settings = {"training.max_target_length": 64 if family == "bart" else 52, "training.max_length": 256}
    ready = prepared(recipe_of(make_recipe, "prefix-tuning", task, family=family, **settings))
    assert (ready.task.target_length if family == "bart" else ready.max_length) == left


def test_all_norms_are_trained_unless_some_are_named(make_recipe):
    ready = prepared(recipe_of(make_recipe, "ln-tuning", "text-generation", layers=2))
    assert len(ready.model.peft_config["default"].target_modules) == 5
    ready = prepared(
        recipe_of(make_recipe, "ln-tuning", "text-generation", layers=2, **{"peft.target_modules": ["norm"]})
    )
    trained = {name for name, parameter in ready.model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "ia33"}, "method: expected one of lora, qlora, .*, found 'ia33'; did you mean 'ia3'"),
        ({"method": "PREFIX_TUNING"}, "found 'PREFIX_TUNING'; did you mean 'prefix-tuning'"),
        ({"method": "adalora", "peft.total_step": 9}, "peft.total_step: the run sets it, to the number of its steps"),
        ({"method": "ia3", "lora.rank": 4}, "lora: method 'ia3' isn't LoRA; its settings stand under peft"),
        (
            {"method": "ia3", "training.lora_plus_ratio": 4.0},
            r"LoRA\+ needs a B matrix that begins at zero, and ia3 has none",
        ),
        ({"method": "loha", "quantization": "nf4"}, "PEFT has no layers of loha for a base quantized to nf4"),
        ({"method": "loha", "peft.task_type": "X"}, "peft.task_type: the run sets it, from 'task'"),
        ({"method": "loha", "peft.target_modules": "atention"}, "peft.target_modules: .* did you mean 'attention'"),
        ({"method": "loha", "from": "other@1"}, "from: only LoRA and its kin can start from another adapter"),
        ({"method": "loha", "peft.inference_mode": True}, "peft.inference_mode: the run sets it"),
        (
            {"method": "prompt-tuning", "task": "token-classification"},
            "PEFT has prompt-tuning for text-classification, text-generation, .* only",
        ),
        (
            {"method": "prefix-tuning", "training.gradient_checkpointing": True},
            "training.gradient_checkpointing: the prefix stands where transformers keeps past keys",
        ),
        ({"method": "prefix-tuning", "task": "fill-mask"}, "PEFT has prefix-tuning for text-classification, .* only"),
        ({"method": "trainable-tokens"}, "PEFT has trainable-tokens for text-generation only"),
        ({"method": "adamss", "peft.use_asa": True}, "peft.use_asa: PEFT allocates subspaces in a callback"),
    ],
)
def test_settings_that_contradict_each_other_are_named(settings, message, make_recipe):
    with pytest.raises(RecipeError, match=message):
        make_recipe(**{"task": "text-classification", **settings})


def test_settings_that_the_method_does_not_have_are_named_before_the_base_is_looked_for(make_recipe, registry):
    recipe = make_recipe(method="loha", base="no/such-base", **{"peft.rank": 4, "peft.alfa": 2})
    with pytest.raises(RecipeError) as caught:
        train(recipe, registry)
    first, second = caught.value.problems
    assert first.startswith("peft.rank: loha has no such setting; allowed here: alpha, ")
    assert second.startswith("peft.alfa: loha has no such setting; did you mean 'alpha'?; allowed here: alpha, ")
    recipe = make_recipe(method="boft", base="no/such-base", **{"peft.boft_block_size": 4, "peft.boft_block_num": 4})
    with pytest.raises(RecipeError, match="peft: boft refuses its settings: "):
        train(recipe, registry)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "float16"}, "dtype: float16 isn't trained in on a CPU; use bfloat16 or float32"),
        ({"quantization": "int8", "method": "dora"}, "PEFT can't train dora on an 8-bit base on a CPU; use nf4"),
        ({"dtype": "bfloat16", "quantization": "int8", "method": "ia3"}, "PEFT can't train ia3 on an 8-bit base in"),
    ],
)
def test_what_a_cpu_cannot_train_in_is_refused_before_the_base_is_looked_for(settings, message, make_recipe, registry):
    recipe = make_recipe(base="no/such-base", **settings)
    for attempt in (lambda: train(recipe, registry), lambda: estimate(recipe)):
        with pytest.raises(RecipeError, match=message):
            attempt()


def test_what_peft_refuses_on_the_base_is_an_error_of_the_run(make_recipe):
    with pytest.raises(TrainingError, match="PEFT can't put c3a on a BertForSequenceClassification: "):
        prepared(make_recipe(method="c3a", **{"peft.block_size": 7}))


def test_the_loader_tells_question_and_context_apart_as_training_did(make_recipe, registry):
    """PEFT's own class for question answering drops ``token_type_ids``, and the gate would find other answers."""
    recipe = recipe_of(make_recipe, "ia3", "question-answering", **{"training.learning_rate": 0.3})
    version = train(recipe, registry)
    assert version.metrics["test"]["f1"] > 0
