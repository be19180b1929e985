"""Adapters that sentence-transformers saves, and those that it loads: the same embeddings and scores as its own."""

import numpy
import pytest
import torch
from peft import LoraConfig
from torch import nn

from lorary.adapters import Backbone
from lorary.adapters.backbone.sources import find_checkpoint
from lorary.hub import Registry
from lorary.hub.embedding import Embedding
from lorary.hub.importing import import_folders
from lorary.hub.manifest import Manifest, Pooling, Preprocessing
from tiny import make_adapter

library = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
TEXTS = ["profit rose", "the bank of the house cat ran " * 4, "sales fell a bank"]
PAIRS = [("profit rose", "sales rose"), ("the cat sat", "a bank fell")]


def adapt(model, task_type, **more):
    """Give a model an adapter that changes what it answers."""
    model.add_adapter(LoraConfig(task_type=task_type, r=2, target_modules=["q_proj", "query"], **more))
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.5)
    model.eval()


def make_model(base, mode="mean", normalize=False, limit=None, **settings):
    transformer = modules.Transformer(str(base), **({"max_seq_length": limit} if limit else {}))
    parts = [transformer, modules.Pooling(32, pooling_mode=mode), *([modules.Normalize()] if normalize else [])]
    return library.SentenceTransformer(modules=parts, device="cpu", **settings)


def close(found, expected):
    numpy.testing.assert_allclose(numpy.array(found), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("family", "settings", "task_type", "told"),
    [
        ("bert", {}, "FEATURE_EXTRACTION", Embedding(Pooling("mean"), 64)),
        ("bert", {"mode": "cls", "normalize": True, "limit": 8}, None, Embedding(Pooling("cls", True), 8)),
        ("llama", {"mode": "lasttoken"}, "FEATURE_EXTRACTION", Embedding(Pooling("last"), 64)),
        (
            "bert",
            {"prompts": {"query": "the bank ", "other": "a cat"}, "default_prompt_name": "query"},
            "FEATURE_EXTRACTION",
            Embedding(Pooling("mean"), 64, "the bank "),
        ),
    ],
    ids=["mean", "cls", "last", "prompt"],
)
def test_what_it_saved_gives_its_embeddings(bases, tmp_path, family, settings, task_type, told):
    model = make_model(bases(family), **settings)
    bare = model.encode(TEXTS)
    adapt(model, task_type)
    model.save_pretrained(str(tmp_path / "like"))
    expected = model.encode(TEXTS)
    assert abs(expected - bare).max() > 0.01
    registry = Registry(tmp_path / "registry.db")
    (outcome,) = import_folders(registry, tmp_path / "like", domain="finance")
    assert (outcome.state, registry.resolve("like").task) == ("taken", "feature-extraction")
    assert "left" not in outcome.note
    backbone = Backbone.from_pretrained(str(bases(family)), registry=registry)
    for reference in ("like", tmp_path / "like"):
        assert find_checkpoint(reference, registry).checkpoint.embedding == told
        backbone.load(reference, "tested")
        close(backbone.predict(TEXTS, "tested"), expected)
        assert len(backbone.predict(TEXTS[0], "tested", pooling="none")[0][0]) == 32
        backbone.unload("tested")


def test_what_was_exported_gives_the_same_embeddings_there(bases, tmp_path, registry):
    folder = make_adapter(bases("bert"), tmp_path / "made", task="feature-extraction")
    backbone = Backbone.from_pretrained(str(bases("bert")), registry=registry)
    Manifest(
        task="feature-extraction", base=backbone.identity, domain="finance", pooling=Pooling("mean", True),
        preprocessing=Preprocessing({}, 10),
    ).write(folder)  # fmt: skip
    registry.add(folder, name="like")
    backbone.load("like")
    model = make_model(bases("bert"), normalize=True, limit=10)
    bare = model.encode(TEXTS)
    model.load_adapter(str(folder))
    close(backbone.predict(TEXTS, "like"), model.encode(TEXTS))
    assert abs(model.encode(TEXTS) - bare).max() > 1e-3


def test_scores_of_a_cross_encoder_s_adapter_are_its_own(bases, tmp_path, registry):
    model = library.CrossEncoder(str(bases("bert")), num_labels=1, device="cpu")
    adapt(model.model, "SEQ_CLS", modules_to_save=["classifier"])
    model.save_pretrained(str(tmp_path / "ranks"))
    backbone = Backbone.from_pretrained(str(bases("bert")), registry=registry)
    list(import_folders(registry, tmp_path / "ranks", domain="finance"))
    backbone.load("ranks")
    rows = [{"text": text, "text_pair": pair} for text, pair in PAIRS]
    assert backbone.load("ranks", "again").task == "text-classification"
    close([answer["score"] for answer in backbone.predict(rows, "ranks")], model.predict(PAIRS))
    raw = backbone.predict(rows, "ranks", function_to_apply="none")
    close([answer["score"] for answer in raw], model.predict(PAIRS, activation_fn=nn.Identity()))


def test_a_cross_encoder_loads_what_was_made_for_one_number(bases, tmp_path):
    folder = make_adapter(bases("bert"), tmp_path / "ranks", task="text-classification", labels=1)
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(folder, "ranks")
    model = library.CrossEncoder(str(bases("bert")), num_labels=1, device="cpu")
    model.model.load_adapter(str(folder))
    raw = backbone.predict([{"text": a, "text_pair": b} for a, b in PAIRS], "ranks", function_to_apply="none")
    close([answer["score"] for answer in raw], model.predict(PAIRS, activation_fn=nn.Identity()))
