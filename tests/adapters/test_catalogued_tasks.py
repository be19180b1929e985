"""Registered adapters without a manifest are for the task that the catalogue has them under, whoever opens them."""

import sqlite3
from contextlib import closing

import pytest
import torch
from transformers import AutoModelForMaskedLM

from http_service import running
from lorary.adapters import Backbone
from lorary.adapters.proving.verification import verify_by_loading
from lorary.adapters.server import Service
from lorary.hub.errors import CheckpointError, RegistryError
from methods import make_method
from tiny import make_adapter, make_config, make_tokenizer

TEXT = "profit rose the bank"
MASKED = "profit [MASK] the bank"


@pytest.fixture
def brief(bases, registry, tmp_path):
    """Of encoder-decoders PEFT notes no more than that they write; the catalogue has this one for summaries."""
    folder = make_adapter(bases("t5"), tmp_path / "brief", task="seq2seq")
    registry.add(folder, name="brief", domain="finance", task="summarization")
    registry.alias("brief", "prod", 1)
    return folder


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    """A tiny masked language model."""
    torch.manual_seed(0)
    folder, model = tmp_path_factory.mktemp("masked") / "bert", AutoModelForMaskedLM.from_config(make_config("bert"))
    model.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder


@pytest.fixture
def words(masked, tmp_path):
    """An adapter of it, for whose task PEFT has no type, under one that isn't its own."""
    lora = {"task_type": "FEATURE_EXTRACTION", "target_modules": ["query", "value"]}
    return make_adapter(masked, tmp_path / "words", task="fill-mask", **lora)


def on(base, registry):
    return Backbone.from_pretrained(str(base), registry=registry)


def test_whichever_way_it_is_loaded(bases, registry, brief):
    backbone = on(bases("t5"), registry)
    assert backbone.load(brief, "it").task == "text-generation"  # a folder is in no catalogue
    loads = {
        "by its name": lambda: backbone.load("brief", "it"),
        "swapped in": lambda: backbone.swap("it", "brief@1"),
        "lazily": lambda: backbone.load("brief@prod", "it", lazy=True),
        "followed": lambda: backbone.follow("brief@prod", "it"),
        "as a checkpoint": lambda: backbone.load(registry.checkpoint("brief"), "it"),
    }
    for way, load in loads.items():
        assert load().task == "summarization", way
        (answer,) = backbone.predict([TEXT], "it", max_new_tokens=3)
        assert list(answer) == ["summary_text"], way
    assert [finding.level for finding in verify_by_loading(registry, registry.versions(), str(bases("t5")))] == ["note"]


def test_one_that_runs_through_peft(bases, registry, tmp_path):
    folder = make_method(bases("t5"), tmp_path / "abroad", "IA3", task="seq2seq")
    registry.add(folder, name="abroad", domain="finance", task="translation")
    backbone = on(bases("t5"), registry)
    assert backbone.load("abroad").task == "translation"
    (answer,) = backbone.predict([TEXT], "abroad", max_new_tokens=3)
    assert list(answer) == ["translation_text"]


def test_a_name_that_was_given_to_another_task_is_picked_up(masked, registry, words):
    registry.add(words, name="words", domain="finance", task="feature-extraction")
    backbone = on(masked, registry)
    assert backbone.follow("words", interval=60).task == "feature-extraction"
    registry.remove("words@1")
    registry.add(words, name="words", domain="finance", task="fill-mask")
    assert backbone.refresh() == ["words"]
    assert "token_str" in backbone.predict(MASKED, "words")[0]


def test_the_same_adapter_for_two_tasks(masked, registry, words):
    for name, task in (("vectors", "feature-extraction"), ("words", "fill-mask")):
        registry.add(words, name=name, domain="finance", task=task)
    for order in (("vectors", "words"), ("words", "vectors")):
        backbone = on(masked, registry)
        for name in order:
            backbone.load(name)
        states, filled = backbone.predict([TEXT, MASKED], ["vectors", "words"])
        assert len(states[0][0]) == backbone.model.config.hidden_size
        assert "token_str" in filled[0]
        assert backbone.stats().adapters == order


def test_over_http(masked, registry, words):
    registry.add(words, name="words", domain="finance", task="fill-mask")
    with running(Service(on(masked, registry))) as caller:
        assert caller.call("/v1/models/words")["task"] == "fill-mask"
        found = caller.call("/v1/predict", {"model": "words", "inputs": MASKED})
    assert "token_str" in found["predictions"][0][0]


def test_blends_and_merged_models(bases, registry, brief, tmp_path):
    other = make_adapter(bases("t5"), tmp_path / "other", task="seq2seq", seed=5)
    registry.add(other, name="other", domain="finance", task="summarization")
    backbone = on(bases("t5"), registry)
    for name in ("brief", "other"):
        backbone.load(name)
    assert backbone.blend({"brief": 0.5, "other": 0.5}, "both", register=True).task == "summarization"
    assert registry.resolve("both").task == "summarization"
    backbone.merge("brief", tmp_path / "merged")
    assert 'pipeline_tag: "summarization"' in (tmp_path / "merged" / "README.md").read_text()


def test_what_is_no_task(bases, registry, brief, words):
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE adapters SET task = 'ner'")
    with pytest.raises(RegistryError, match="brief@1: the registry has 'ner' for its task; expected"):
        on(bases("t5"), registry).load("brief")


@pytest.mark.parametrize("method", ["LORA", "IA3"])
def test_what_cant_be_for_that_task_says_whose_word_it_is(bases, registry, tmp_path, method):
    folder = make_method(bases("gpt2"), tmp_path / "story", method, task="text-generation")
    registry.add(folder, name="story", domain="fiction", task="text-classification")
    with pytest.raises(CheckpointError, match=r"story@1 \(text-classification by the catalogue\): its head"):
        on(bases("gpt2"), registry).load("story")
