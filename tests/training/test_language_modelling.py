"""Masked and causal language modelling on running text: blocks, masks, figures, baselines, and runs end to end."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, DataCollatorForLanguageModeling

from lorary.adapters import Backbone
from lorary.hub.errors import BaseNotFoundError, DataError, TrainingError
from lorary.training import train
from lorary.training.data import Example
from lorary.training.fitting.evaluate import outcomes
from lorary.training.fitting.losses import IGNORED
from lorary.training.tasks import make_task
from lorary.training.tasks.metrics.tokens import unigram
from lorary.training.tasks.rows.token_rows import Frame, blocks, frame_of, tokenize
from samples import WORDS, bpe_tokenizer, text_rows, wordpiece_tokenizer

CONTINUAL = {"strategy": "continual", "training.max_length": 32}


def documents(*texts):
    return [Example({"text": text}, f"corpus.txt, line {number}") for number, text in enumerate(texts, start=1)]


def encode(recipe, tokenizer, *texts, max_length=16):
    task = make_task(recipe, None)
    return task, task.encode(documents(*texts), tokenizer, max_length, lambda line: None)


def test_blocks_hold_every_token_once_with_special_ones_around():
    tokenizer = wordpiece_tokenizer()
    texts = [row["text"] for row in text_rows(9)]
    stream = tokenize(documents(*texts), tokenizer)
    rows = blocks(stream, 10, Frame((), (3,)), frame_of(tokenizer))
    found = [rows.row(index) for index in range(len(rows))]
    assert all(row[0] == 2 and row[-1] == 3 for row in found)
    assert {len(row) for row in found[:-1]} == {10}
    expected = [token for text in texts for token in [*tokenizer(text, add_special_tokens=False)["input_ids"], 3]]
    assert [token for row in found for token in row[1:-1]] == expected
    ends = [index for index, token in enumerate(expected) if token == 3]  # a block names the document it begins in
    assert list(rows.first) == [sum(end < 8 * number for end in ends) for number in range(len(rows))]


def test_causal_blocks_put_each_document_between_beginning_and_end(make_recipe):
    tokenizer = bpe_tokenizer()
    recipe = make_recipe("text-generation", **CONTINUAL)
    _, encoded = encode(recipe, tokenizer, "profit rose", "sales fell today", max_length=8)
    ids = [token for feature in encoded.features for token in feature["input_ids"]]
    assert tokenizer.decode(ids) == "<s>profit rose</s><s>sales fell today</s>"
    assert all(feature["labels"] == feature["input_ids"] for feature in encoded.features)


def test_masks_are_the_rows_own_and_an_epoch_of_training_gets_others(make_recipe):
    tokenizer = wordpiece_tokenizer()
    texts = [row["text"] for row in text_rows(40)]
    recipe = make_recipe("fill-mask")
    task, encoded = encode(recipe, tokenizer, *texts, max_length=32)
    _, again = encode(make_recipe("fill-mask", **{"training.seed": 7}), tokenizer, *texts, max_length=32)
    assert list(encoded.features) == list(again.features)
    special = set(tokenizer.all_special_ids)
    whole = [encoded.features.rows.row(place) for place in range(len(encoded.features))]
    fresh = encoded.features.anew(42)
    for rows in (encoded.features, fresh):
        hidden = 0
        for feature, ids in zip(rows, whole, strict=True):
            places = [place for place, label in enumerate(feature["labels"]) if label != IGNORED]
            assert places
            hidden += len(places)
            for place, token in enumerate(ids):
                assert feature["labels"][place] in (IGNORED, token)
                if place not in places:
                    assert feature["input_ids"][place] == token
            assert not special & {ids[place] for place in places}
        maskable = sum(token not in special for ids in whole for token in ids)
        assert hidden / maskable == pytest.approx(0.15, abs=0.05)

    first = list(fresh)
    assert first == [fresh[place] for place in range(len(fresh))]  # whenever and beside whatever a row is asked for
    assert fresh.pick([3, 1])[:] == (first[3], first[1])
    fresh.epoch = 1
    assert sum(row != other for row, other in zip(fresh, first, strict=True)) > len(first) / 2
    assert list(encoded.features.anew(7)) != first
    padded = task.collator(tokenizer)([first[0], {**first[1], "input_ids": [5], "labels": [5], "attention_mask": [1]}])
    assert padded["attention_mask"][1].tolist() == [1] + [0] * (len(first[0]["input_ids"]) - 1)
    assert set(padded["labels"][1].tolist()[1:]) == {IGNORED}


def test_tokens_are_hidden_as_transformers_hides_them(make_recipe):
    tokenizer = wordpiece_tokenizer()
    _, encoded = encode(make_recipe("fill-mask"), tokenizer, *(row["text"] for row in text_rows(4)), max_length=32)
    theirs = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15, return_tensors="np")
    compared = 0
    for place, row in enumerate(encoded.features.anew(3)):
        theirs.generator = np.random.default_rng([3, 0, place])
        ids = np.array([encoded.features.rows.row(place)])
        inputs, labels = theirs.numpy_mask_tokens(ids, np.isin(ids, tokenizer.all_special_ids))
        if (labels != IGNORED).any():
            assert row["input_ids"] == inputs[0].tolist()
            assert row["labels"] == labels[0].tolist()
            compared += 1
    assert compared


def test_all_pieces_of_a_word_are_hidden_together(make_recipe):
    tokenizer = wordpiece_tokenizer()
    recipe = make_recipe("fill-mask", **{"training.whole_word_mask": True, "training.mlm_probability": 0.4})
    _, encoded = encode(recipe, tokenizer, "profit xyz rose abc the wq fell", "zzz bank", max_length=64)
    for row in (encoded.features[0], encoded.features.anew(0)[0]):
        ids, labels = row["input_ids"], row["labels"]
        whole = tokenizer.convert_ids_to_tokens(encoded.features.rows.row(0))
        hidden = [label != IGNORED for label in labels]
        assert any(hidden)
        assert all(hidden[place] == hidden[place - 1] for place, piece in enumerate(whole) if piece.startswith("##"))
        assert all(int(ids[place]) == tokenizer.mask_token_id for place, is_hidden in enumerate(hidden) if is_hidden)


def test_rows_of_fine_tuning_stand_alone_and_are_cut(make_recipe):
    tokenizer = wordpiece_tokenizer()
    _, encoded = encode(
        make_recipe("fill-mask", **{"strategy": "fine-tune"}), tokenizer, "profit", " ".join(WORDS), max_length=12
    )
    assert [len(feature["input_ids"]) for feature in encoded.features] == [3, 12]
    assert [length.cut for length in encoded.lengths] == [0, len(WORDS) + 2 - 12]
    assert [len(feature["input_ids"]) for feature in encoded.pick([1]).features.anew(1)] == [12]


@pytest.mark.parametrize("task", ["fill-mask", "text-generation"])
def test_the_figures_are_the_models_own_loss(task, make_recipe, bases):
    family = {"fill-mask": "bert-mlm", "text-generation": "llama"}[task]
    auto = {"fill-mask": AutoModelForMaskedLM, "text-generation": AutoModelForCausalLM}[task]
    model, tokenizer = auto.from_pretrained(bases(family)).eval(), AutoTokenizer.from_pretrained(bases(family))
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    made, encoded = encode(
        make_recipe(task, **CONTINUAL), tokenizer, *(row["text"] for row in text_rows(12)), max_length=32
    )
    found = made.metrics(outcomes(model, made, encoded, tokenizer, batch_size=3), encoded.golds)
    losses = tokens = 0
    for feature in encoded.features:
        inputs = {name: torch.tensor([feature[name]]) for name in ("input_ids", "labels")}
        count = sum(label != IGNORED for label in feature["labels"][task == "text-generation" :])
        with torch.no_grad():
            losses += float(model(**inputs).loss) * count
        tokens += count
    assert found["loss"] == pytest.approx(losses / tokens, rel=1e-5)
    assert found["perplexity"] == pytest.approx(math.exp(losses / tokens), rel=1e-4)


def test_the_unigram_baseline():
    train, vocabulary = [[0, 1, 1, 2, 1]], 4
    found = unigram(train, [{"labels": [IGNORED, 1, 2, 3]}], vocabulary)
    counts = torch.tensor([2.0, 4.0, 2.0, 1.0])
    expected = torch.nn.functional.cross_entropy(counts.log().expand(3, -1), torch.tensor([1, 2, 3]))
    assert found["loss"] == pytest.approx(float(expected))
    assert found["token_accuracy"] == pytest.approx(1 / 3)
    found = unigram(train, [{"labels": [0, IGNORED]}], vocabulary, without=(1,))
    assert found["loss"] == pytest.approx(math.log(5 / 2))  # of the 5 that may be asked for
    assert found["token_accuracy"] == 1


@pytest.mark.parametrize(
    ("task", "settings"),
    [
        ("fill-mask", {}),
        ("fill-mask", {"training.whole_word_mask": True, "method": "qlora"}),
        ("fill-mask", {"strategy": "fine-tune", "training.early_stopping": 2}),
        ("text-generation", {**CONTINUAL, "training.epochs": 3}),  # which learns from every token
    ],
)
def test_a_run_learns_and_is_served(task, settings, make_recipe, registry, tmp_path):
    recipe = make_recipe(
        task, **{"training.epochs": 6, "training.learning_rate": 0.02, "training.max_length": 32, **settings},
        **({"data.columns": {"text": "text"}} if task == "text-generation" else {}),
        **{"data.train": write(tmp_path, "train.txt", 160), "data.test": write(tmp_path, "test.txt", 40, seed=9)},
    )  # fmt: skip
    version = train(recipe, registry)
    assert version.strategy == recipe.strategy
    assert set(version.metrics) >= {"test", "untrained", "unigram"}
    losses = {split: values["loss"] for split, values in version.metrics.items()}
    assert losses["test"] < 0.95 * losses["untrained"], losses
    assert losses["unigram"] < math.log(80), losses
    assert set(version.metrics["test"]) == {"loss", "perplexity", "token_accuracy"}
    backbone = Backbone.from_pretrained(recipe.base, quantization=recipe.quantization, registry=registry)
    backbone.load("tiny")
    if task == "fill-mask" and recipe.quantization == "none":
        text = "profit fell [MASK] the"
        (answer,) = backbone.predict([text], "tiny", top_k=1)
        model = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(recipe.base), tmp_path / "out").eval()
        inputs = backbone.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            logits = model(**inputs).logits[inputs["input_ids"] == backbone.tokenizer.mask_token_id]
        assert answer[0]["token"] == int(logits.argmax())
        assert answer[0]["score"] == pytest.approx(float(logits.softmax(-1).max()), rel=1e-4)


def write(folder, name, count, seed=0):
    path = folder / name
    path.write_text("\n\n".join(row["text"] for row in text_rows(count, seed)))
    return str(path)


def test_the_same_recipe_gives_the_same_digest(make_recipe, registry, tmp_path):
    recipe = make_recipe("fill-mask", rows=40, held=4, **{"training.epochs": 2, "training.early_stopping": 1})
    first = train(recipe, registry)
    torch.rand(5)
    assert train(recipe.model_copy(update={"output": str(tmp_path / "second")}), registry).digest == first.digest


@pytest.mark.parametrize(
    ("task", "family", "message"),
    [
        ("fill-mask", "llama", r"\(llama\) can't fill masks; choose a masked language model"),
        ("text-generation", "bert", "is an encoder, which can't generate"),
    ],
)
def test_a_base_of_the_wrong_kind_is_refused(task, family, message, make_recipe, registry, tmp_path):
    with pytest.raises((TrainingError, BaseNotFoundError), match=message):
        train(make_recipe(task, family), registry)
    assert registry.versions() == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_a_base_without_a_head_gets_one_with_the_adapter(family, make_recipe, registry, tmp_path):
    """As sentence encoders are published: a dense layer and a norm are trained, the output is the embeddings."""
    recipe = make_recipe("fill-mask", family, rows=60, held=8, **{"training.epochs": 4})
    version = train(recipe, registry)
    assert version.metrics["test"]["loss"] < version.metrics["untrained"]["loss"] - 0.5
    saved = {key.partition(".model.")[2] for key in load_file(tmp_path / "out" / "adapter_model.safetensors")}
    head = {
        "bert": "cls.predictions.transform.dense.weight", "roberta": "lm_head.layer_norm.weight",
        "distilbert": "vocab_transform.weight",
    }[family]  # fmt: skip
    assert head in saved
    assert not any("decoder" in key or "embedding" in key for key in saved)
    backbone = Backbone.from_pretrained(recipe.base, registry=registry)
    backbone.load("tiny")
    model = PeftModel.from_pretrained(AutoModelForMaskedLM.from_pretrained(recipe.base), tmp_path / "out").eval()
    row = backbone.tokenizer("profit rose [MASK] the bank")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(backbone.logits([row], "tiny")[0], model(torch.tensor([row])).logits[0])
    # It goes on with its head, and a task starts from it without.
    more = {"from": "tiny@1", "training.max_steps": 2}
    again = train(make_recipe("fill-mask", family, rows=60, held=8, **more, output=str(tmp_path / "more")), registry)
    assert again.metrics["untrained"]["loss"] == pytest.approx(version.metrics["test"]["loss"], rel=1e-4)
    task = {"name": "tone", "strategy": "intermediate", **more, "output": str(tmp_path / "tone")}
    classifier = train(make_recipe("text-classification", family, held=4, **task), registry)
    assert classifier.manifest.provenance["from"]["reference"] == "tiny@1"
    assert not any("vocab_transform" in key or "predictions" in key or "lm_head" in key for key in (
        load_file(tmp_path / "tone" / "adapter_model.safetensors")
    ))  # fmt: skip


def test_a_new_head_is_not_trained_on_a_quantized_base(make_recipe, registry):
    with pytest.raises(TrainingError, match="a new one is trained on an unquantized base only"):
        train(make_recipe("fill-mask", "bert", method="qlora"), registry)


def test_a_row_without_a_word_is_dropped_and_a_batch_always_has_something_hidden(make_recipe, registry, tmp_path):
    settings = {"strategy": "fine-tune", "training.batch_size": 1, "training.max_steps": 12}
    recipe = make_recipe("fill-mask", **settings)
    (tmp_path / "train.jsonl").write_text('{"text": "\\u4e00"}\n' + '{"text": "bank"}\n{"text": "a firm"}\n' * 3)
    version = train(recipe, registry)
    assert "1 of 7 training rows were dropped: nothing to learn" in version.manifest.provenance["notices"][0]
    recipe = make_recipe("fill-mask", **{"output": str(tmp_path / "other")})
    (tmp_path / "train.jsonl").write_text('{"text": "\\u4e00"}\n')
    with pytest.raises(DataError, match="no training row has a token to learn"):
        train(recipe, registry)


def test_words_of_the_text_that_look_like_special_tokens_are_not_hidden(make_recipe):
    tokenizer = wordpiece_tokenizer()
    _, encoded = encode(make_recipe("fill-mask"), tokenizer, "[MASK] [SEP] profit", max_length=16)
    (feature,) = encoded.features
    labels = {label for label in feature["labels"] if label != IGNORED}
    assert labels == {tokenizer.convert_tokens_to_ids("profit")}
