"""Summarization and translation: they learn, PEFT agrees, and predict gives what the evaluation measured."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from lorary.adapters import Backbone
from lorary.hub.errors import DataError, RecipeError, TrainingError
from lorary.hub.manifest import Generation
from lorary.training import Recipe, train
from lorary.training.data import Example
from lorary.training.fitting.losses import IGNORED
from lorary.training.progress import Reporter
from lorary.training.tasks import make_task
from lorary.training.tasks.forms import demand_decoder
from samples import ENDINGS, encoder_decoder, summary_rows, write_jsonl

SHORT = {"training.max_target_length": 12}
MBART = {"data.source_lang": "en_XX", "data.target_lang": "de_DE"}
NLLB = {"data.source_lang": "eng_Latn", "data.target_lang": "deu_Latn"}
LEARNS = {"training.epochs": 4, "training.learning_rate": 0.02, "lora.rank": 8, "report.write": False, **SHORT}


def make_base(bases, family):
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    auto = AutoModelForCausalLM if family == "llama" else AutoModelForSeq2SeqLM
    return auto.from_pretrained(bases(family)), AutoTokenizer.from_pretrained(bases(family))


@pytest.mark.parametrize(
    ("task", "family", "settings"),
    [
        ("summarization", "t5", {}),
        ("translation", "bart", {"generation.num_beams": 2}),
        ("translation", "mbart", MBART),
        ("translation", "nllb", {**NLLB, "layers": 2}),  # its config has layers left out now and then
        ("summarization", "llama", {"method": "rslora"}),
    ],
)
def test_it_learns_and_peft_and_predict_give_what_was_measured(task, family, settings, make_recipe, registry, tmp_path):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    more = {"rows": 96, "training.epochs": 6} if family == "t5" else {"rows": 64}
    recipe = make_recipe(task, family, held=10, **{**LEARNS, **more, **settings})
    version = train(recipe, registry)
    trained, untrained = version.metrics["test"], version.metrics["untrained"]
    baseline = version.metrics["lead-3" if task == "summarization" else "copy"]
    metric = "rougeL" if task == "summarization" else "bleu"
    assert trained["loss"] < 0.5 * untrained["loss"]
    if family != "t5":  # a random one's position biases tell its decoder too little to put words in order
        assert trained[metric] > max(untrained[metric], baseline[metric])

    # PEFT alone, with the base as transformers loads it.
    auto = AutoModelForCausalLM if family == "llama" else AutoModelForSeq2SeqLM
    model = PeftModel.from_pretrained(auto.from_pretrained(recipe.base), tmp_path / "out").eval()
    kind = "CAUSAL_LM" if family == "llama" else "SEQ_2_SEQ_LM"
    assert model.peft_config["default"].task_type == kind
    golden = load_file(tmp_path / "out" / "golden.safetensors")
    for index, row in enumerate(version.manifest.golden_rows):
        begun = [] if family == "llama" else [model.config.decoder_start_token_id, *row[:3]]
        decoder = {"decoder_input_ids": torch.tensor([begun])} if begun else {}
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row]), **decoder).logits[0, -1]
        torch.testing.assert_close(golden[str(index)], logits, rtol=1e-4, atol=1e-5)

    # A fresh backbone knows prefix, languages, lengths and beams from the manifest alone.
    backbone = Backbone.from_pretrained(recipe.base)
    backbone.load(tmp_path / "out", "it")
    assert backbone.verify("it").matches
    source, target = ("text", "summary") if task == "summarization" else ("source", "target")
    rows = [{source: row["text"], target: row["summary"]} for row in summary_rows(10, seed=9)]
    answers = [next(iter(one.values())) for one in backbone.predict([row[source] for row in rows], "it")]
    measured = make_task(recipe, None).text_metrics(answers, [row[target] for row in rows])
    assert measured == {name: pytest.approx(trained[name], abs=1e-9) for name in measured}
    assert backbone.generate([row[source] for row in rows], "it") == answers
    assert version.manifest.generation == Generation(12, num_beams=settings.get("generation.num_beams", 1))


def test_a_quantized_t5_keeps_its_head_and_adapts_both_of_its_parts(make_small, registry, tmp_path):
    settings = {**SHORT, "method": "qlora", "training.max_steps": 1, "generation.rows": 2}
    recipe = make_small("summarization", "t5", **settings, rows=16)
    version = train(recipe, registry)
    assert version.quantization == "nf4"
    keys = {key.rpartition(".lora_")[0].removeprefix("base_model.model.") for key in adapter_keys(tmp_path / "out")}
    decoder = {
        "0.SelfAttention.q",
        "0.SelfAttention.o",
        "1.EncDecAttention.k",
        "2.DenseReluDense.wi",
        "2.DenseReluDense.wo",
    }
    assert {f"decoder.block.0.layer.{name}" for name in decoder} <= keys
    assert {"encoder.block.0.layer.0.SelfAttention.v", "encoder.block.0.layer.1.DenseReluDense.wi"} <= keys
    assert not any("lm_head" in key or "shared" in key for key in keys)
    assert Backbone.from_pretrained(recipe.base, quantization="nf4").load(tmp_path / "out").notes == ()


def adapter_keys(folder):
    return load_file(folder / "adapter_model.safetensors").keys()


def test_half_precision_passes_the_gate_by_its_tokens(make_small, registry):
    settings = {**LEARNS, "training.max_steps": 2, "dtype": "bfloat16"}
    version = train(make_small("summarization", "t5", **settings), registry)
    assert version.metrics["test"]["rougeL"] >= 0


def test_the_same_recipe_gives_the_same_digest(make_small, registry, tmp_path):
    settings = {**LEARNS, "training.max_steps": 2, "generation.rows": 2}
    recipe = make_small("translation", "bart", rows=24, **settings)
    first = train(recipe, registry)
    again = train(recipe.model_copy(update={"output": str(tmp_path / "again")}), registry)
    assert again.digest == first.digest


# Rows


def met(make_recipe, bases, task, family, **settings):
    """A task that has met its base, the tokenizer and the notes."""
    recipe = make_recipe(task, family, **{**SHORT, **settings})
    model, tokenizer = make_base(bases, family)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    task, notes = make_task(recipe, None), []
    task.longest = task.meet(model, tokenizer, recipe.training.max_length, notes.append)
    return task, tokenizer, notes


def encode(task, tokenizer, *rows, notes):
    examples = [Example(row, f"rows, row {number}") for number, row in enumerate(rows, start=1)]
    return task.encode(examples, tokenizer, task.longest, notes.append)


ROW = {"text": "profit rose today", "summary": ENDINGS["good"]}
PAIR = {"source": ROW["text"], "target": ROW["summary"]}


def test_encoder_decoders_read_the_prefix_and_learn_the_target_with_its_end(make_recipe, bases):
    task, tokenizer, notes = met(make_recipe, bases, "summarization", "t5")
    (feature,) = encode(task, tokenizer, ROW, notes=notes).features
    assert feature["input_ids"] == tokenizer("summarize: profit rose today")["input_ids"]
    assert feature["labels"] == tokenizer(text_target=ROW["summary"])["input_ids"]
    assert feature["labels"][-1] == tokenizer.eos_token_id
    batch = task.collator(tokenizer)([feature, {**feature, "labels": feature["labels"][:3]}])
    assert batch["labels"][1].tolist() == feature["labels"][:3] + [IGNORED] * (len(feature["labels"]) - 3)
    assert batch["decoder_input_ids"][0].tolist() == [0, *feature["labels"][:-1]]
    assert "token_type_ids" not in batch


@pytest.mark.parametrize(
    ("task", "family", "settings", "prefix"),
    [
        ("summarization", "bart", {}, ""),
        ("summarization", "t5", {"prompt.prefix": ""}, ""),
        (
            "translation",
            "t5",
            {"data.source_lang": "English", "data.target_lang": "German"},
            "translate English to German: ",
        ),
        ("translation", "t5", {}, ""),
        ("translation", "bart", {"prompt.prefix": ">>fra<< "}, ">>fra<< "),
    ],
)
def test_prefixes(task, family, settings, prefix, make_recipe, bases):
    task, _, notes = met(make_recipe, bases, task, family, **settings)
    assert task.preprocessing(64).prefix == prefix
    assert any("without a prefix" in line for line in notes) == (
        family == "t5" and task.name == "translation" and not settings
    )


@pytest.mark.parametrize(("family", "settings"), [("mbart", MBART), ("nllb", NLLB)])
def test_targets_carry_their_language_as_the_tokenizer_puts_it(family, settings, make_recipe, bases):
    task, tokenizer, notes = met(make_recipe, bases, "translation", family, **settings)
    (feature,) = encode(task, tokenizer, PAIR, notes=notes).features
    source, target = settings["data.source_lang"], settings["data.target_lang"]
    assert tokenizer.convert_tokens_to_ids(source) in feature["input_ids"]
    code = tokenizer.convert_tokens_to_ids(target)
    assert feature["labels"][-1 if family == "mbart" else 0] == code
    setting = "decoder_start_token_id" if family == "mbart" else "forced_bos_token_id"
    assert task.settings[setting] == code
    assert tokenizer.src_lang == source.split("_")[0] + "_" + source.split("_")[1]  # as it was loaded


def test_a_causal_base_gets_a_prompt_and_learns_what_follows(make_recipe, bases):
    settings = {"data.source_lang": "English", "data.target_lang": "German"}
    task, tokenizer, notes = met(make_recipe, bases, "translation", "llama", **settings)
    (feature,) = encode(task, tokenizer, PAIR, notes=notes).features
    prompt = task.prompt(tokenizer)
    assert prompt.template == "Translate the text from English to German.\n\n### Text:\n{prompt}\n\n### Translation:\n"
    learned = [label for label in feature["labels"] if label != IGNORED]
    assert learned == [*tokenizer(PAIR["target"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    begun = feature["input_ids"][: -len(learned)]
    assert begun == tokenizer(prompt.template.replace("{prompt}", PAIR["source"]))["input_ids"]
    assert task.preprocessing(64).source_lang is None  # the prompt names the languages, the tokenizer doesn't


def test_a_chat_puts_the_instruction_into_the_users_turn(make_recipe, bases):
    task, tokenizer, notes = met(make_recipe, bases, "summarization", "llama", **{"prompt.format": "chat"})
    (feature,) = encode(task, tokenizer, ROW, notes=notes).features
    text = tokenizer.decode(feature["input_ids"])
    assert text == f"<s><user>Summarize the text.\n\n{ROW['text']}<assistant>{ROW['summary']}</s>"


def test_a_long_text_is_cut_and_its_template_and_target_stay(make_recipe, bases):
    task, tokenizer, notes = met(make_recipe, bases, "summarization", "llama", **{"training.max_length": 80})
    encoded = encode(task, tokenizer, ROW, {**ROW, "text": "profit rose today " * 60}, notes=notes)
    long = encoded.features[1]
    text = tokenizer.decode(long["input_ids"])
    assert text.endswith(f"\n\n### Summary:\n{ROW['summary']}</s>")
    assert text.startswith("<s>Summarize the text.\n\n### Text:\nprofit rose today profit")
    prompt = sum(label == IGNORED for label in long["labels"])
    assert 76 <= prompt <= 80
    assert encoded.lengths[1].cut > 100
    assert encoded.lengths[0].cut == 0


def test_a_long_target_is_cut_before_its_end_and_counted(make_recipe, bases):
    for family in ("t5", "llama"):
        task, tokenizer, notes = met(make_recipe, bases, "summarization", family)
        (feature,) = encode(task, tokenizer, {**ROW, "summary": "sales grew " * 30}, notes=notes).features
        learned = [label for label in feature["labels"] if label != IGNORED]
        assert (len(learned), learned[-1]) == (12, tokenizer.eos_token_id)
        assert notes[-1] == "1 of 1 targets are longer than 12 tokens and were cut (training.max_target_length)"
        room = task.room(64)
        assert room.most == "64 tokens of text or 12 of target"
        assert room.settings == "training.max_length or training.max_target_length"


# Measuring


def test_texts_are_generated_for_some_rows_and_the_loss_is_that_of_all(make_small, registry):
    reporter = Reporter()
    settings = {**LEARNS, "training.max_steps": 1, "generation.rows": 4}
    version = train(make_small("summarization", "bart", held=20, **settings), registry, reporter)
    (line,) = [line for line in reporter.notices if "texts were generated" in line]
    assert line.startswith("texts were generated for 4 of 20 held-out rows, evenly spread")
    assert set(version.metrics["lead-3"]) == {"rouge1", "rouge2", "rougeL", "rougeLsum"}


# What can't be


@pytest.mark.parametrize(
    ("task", "family", "settings", "message"),
    [
        ("summarization", "t5", {"prompt.template": "{prompt} TL;DR:"}, "encoder-decoder, which takes a prefix only"),
        ("summarization", "bert", {}, "is an encoder, which can't generate"),
        ("translation", "mbart", {}, "marks each text with its language; name both"),
        ("translation", "mbart", {**MBART, "data.target_lang": "German"}, "knows no language 'German'"),
        ("translation", "bart", {"data.source_lang": "en", "data.target_lang": "de"}, "marks no languages"),
        ("summarization", "llama", {"training.max_target_length": 250}, "leaves 6 of the base's 256 tokens"),
        ("summarization", "llama", {"prompt.template": "word " * 90 + "{prompt}"}, "raise training.max_length"),
    ],
)
def test_what_a_base_cannot_do_is_refused(task, family, settings, message, make_recipe, registry, tmp_path):
    with pytest.raises(TrainingError, match=message):
        train(make_recipe(task, family, **{**SHORT, **settings}), registry)
    assert not (tmp_path / "out").exists()


def test_t5_is_refused_in_float16(bases):
    """Of a GPU's dtypes; on a CPU no base is trained in it."""
    config = AutoConfig.from_pretrained(bases("t5"))
    with pytest.raises(TrainingError, match="the activations of 't5' overflow in it"):
        demand_decoder(config, torch.float16)
    demand_decoder(config, torch.bfloat16)


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        ("translation", {"data.source_lang": "en"}, "data.target_lang: missing, since data.source_lang is given"),
        ("summarization", {"generation.rows": 0}, "generation.rows: summarization is measured on generated texts"),
        ("summarization", {"generation.length_penalty": 2.0}, "generation.length_penalty: only beams have it"),
        ("summarization", {"prompt.template": "x"}, r"expected a text with \{prompt\} in it once"),
        ("summarization", {"prompt.format": "plain", "prompt.template": "{prompt}"}, "only format 'instruction'"),
        ("summarization", {"prompt.chat_template": "x"}, "only format 'chat'"),
        ("summarization", {"data.labels": ["a"]}, "data.labels: summarization has no labels"),
        ("summarization", {"training.packing": True}, "only text-generation rows can be packed"),
        ("summarization", {"data.columns": {"source": "a"}}, "summarization has no 'source' column"),
        ("text-generation", {"prompt.prefix": "x"}, "prompt.prefix: text-generation has none"),
        ("text-classification", {"prompt.prefix": "x"}, "have a prompt; the task is text-classification"),
        ("text-classification", {"training.max_target_length": 9}, "only summarization and translation have it"),
        ("text-classification", {"data.source_lang": "en"}, "only summarization and translation have it"),
        ("text-classification", {"generation.num_beams": 2}, "text-classification generates nothing"),
        ("text-generation", {"generation.num_beams": 2}, "nothing is generated for generation.rows: 0"),
    ],
)
def test_settings_that_contradict_each_other(task, settings, message, make_recipe):
    with pytest.raises(RecipeError, match=message):
        make_recipe(task, **settings)


def test_empty_texts_are_named(make_recipe, registry, tmp_path):
    recipe = make_recipe("summarization")
    write_jsonl(tmp_path / "train.jsonl", [*summary_rows(3), {"text": "profit", "summary": " "}, {"text": 3}])
    with pytest.raises(DataError) as caught:
        train(recipe, registry)
    assert [problem.rpartition("train.jsonl, ")[2] for problem in caught.value.problems] == [
        "row 4, summary: is empty",
        "row 5, text: expected a text, found 3",
        "row 5, summary: missing; the row has text",
    ]


def test_the_samples_have_an_encoder_and_a_decoder():
    for family in ("t5", "bart", "mbart", "nllb"):
        assert encoder_decoder(family)[0].config.is_encoder_decoder


@pytest.mark.parametrize("task", ["summarization", "translation", "text-generation", "text-classification"])
def test_a_recipe_with_its_defaults_reads_back(task, make_recipe, tmp_path):
    recipe = make_recipe(task)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe
