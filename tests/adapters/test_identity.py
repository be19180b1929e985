"""The base fingerprint: the same for copies and quantized loads, another for another model."""

import shutil

import pytest
import torch
import transformers

from lorary.adapters import Backbone
from lorary.adapters.base.identity import fingerprint_model, identify
from lorary.adapters.base.loading import load_base
from lorary.hub.manifest import Manifest
from tiny import make_adapter, make_base, task_class


def test_the_same_for_copies_quantizations_and_task_models(bases, tmp_path):
    base = bases("bert")
    expected = load_base(str(base), device="cpu").identity.fingerprint
    shutil.copytree(base, tmp_path / "renamed")
    assert load_base(str(tmp_path / "renamed"), device="cpu").identity.fingerprint == expected
    for quantization in ("nf4", "int8"):
        assert load_base(str(base), quantization=quantization, device="cpu").identity.fingerprint == expected
    assert load_base(str(base), dtype="bfloat16", device="cpu").identity.fingerprint == expected
    classifier = task_class("text-classification").from_pretrained(base, num_labels=2)
    assert fingerprint_model(classifier) == expected


def test_another_for_other_weights_and_another_shape(bases, tmp_path):
    one = load_base(str(bases("bert")), device="cpu").identity.fingerprint
    other_weights = load_base(str(make_base("bert", tmp_path / "w", seed=5)), device="cpu").identity.fingerprint
    fewer_heads = make_base("bert", tmp_path / "h", seed=0)
    config = fewer_heads / "config.json"
    config.write_text(config.read_text().replace('"num_attention_heads": 4', '"num_attention_heads": 2'))
    assert len({one, other_weights, load_base(str(fewer_heads), device="cpu").identity.fingerprint}) == 3


def test_float16_gives_none(bases):
    assert load_base(str(bases("bert")), dtype="float16", device="cpu").identity.fingerprint is None


@pytest.mark.parametrize("name", ["T5ForTokenClassification", "T5EncoderModel"])
def test_a_part_of_a_base_gives_none(bases, tmp_path, name):
    """Its encoder alone doesn't tell which base it is, and mustn't pass for another one's."""
    from lorary.adapters import Backbone
    from tiny import make_adapter, make_tokenizer

    whole = load_base(str(bases("t5")), device="cpu").identity
    folder = make_adapter(bases("t5"), tmp_path / "a", task="token-classification")
    Manifest("token-classification", whole, labels=("A", "B", "C")).write(folder)
    part = Backbone.from_model(getattr(transformers, name).from_pretrained(bases("t5")), make_tokenizer("t5"))
    assert part.identity.fingerprint is None
    assert "unverified" in " ".join(part.load(folder).notes)


def test_the_tokenizers_hash_ignores_how_it_was_called_last(bases):
    loaded = load_base(str(bases("bert")), device="cpu")
    before = identify(loaded.model, loaded.tokenizer, "x").tokenizer_sha256
    loaded.tokenizer(["profit", "profit rose"], truncation=True, max_length=3, padding=True)
    assert identify(loaded.model, loaded.tokenizer, "x").tokenizer_sha256 == before


@pytest.mark.parametrize("family", ["llama", "t5", "gpt2"])
def test_adapted_backbones_keep_their_fingerprint(bases, tmp_path, family):
    from lorary.adapters import Backbone
    from tiny import make_adapter

    backbone = Backbone.from_pretrained(str(bases(family)))
    task = "seq2seq" if family == "t5" else "text-generation"
    backbone.load(make_adapter(bases(family), tmp_path / "a", task=task))
    assert fingerprint_model(backbone.model) == backbone.identity.fingerprint
    assert backbone.dtype is torch.float32


def test_a_backbone_shows_its_base_arithmetic_and_adapters(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("bert")), quantization="nf4", device="cpu")
    backbone.load(make_adapter(bases("bert"), tmp_path / "adapter", task="text-classification"), "tone")
    assert repr(backbone) == f"<Backbone {bases('bert')} (nf4, float32 on cpu), adapters: 1>"
