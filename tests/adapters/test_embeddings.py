"""Feature extraction: hidden states as the pipeline gives them, pooled where the manifest or the call says so."""

import shutil

import pytest
import torch
from transformers import T5EncoderModel, pipeline

from lorary.adapters import Backbone
from lorary.hub.errors import UsageError
from lorary.hub.manifest import BaseIdentity, Manifest, Pooling, Preprocessing
from tiny import make_adapter, peft_reference

TEXTS = ["profit rose the bank", "patient", "free cash offer price win"]


@pytest.fixture(scope="module")
def folder(bases, tmp_path_factory):
    return make_adapter(bases("bert"), tmp_path_factory.mktemp("f") / "plain", task="feature-extraction")


@pytest.fixture(scope="module")
def backbone(bases, folder):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(folder)
    return backbone


@pytest.fixture(scope="module")
def states(bases, backbone, folder):
    """Each text's hidden states [tokens, hidden] by transformers' pipeline over PEFT's model."""
    model = peft_reference(bases("bert"), folder, task="feature-extraction").base_model.model
    reference = pipeline("feature-extraction", model=model, tokenizer=backbone.tokenizer)
    return [torch.tensor(reference(text)[0]) for text in TEXTS]


def vectors(states, mode, normalize):
    made = [{"mean": own.mean(0), "cls": own[0], "last": own[-1]}[mode] for own in states]
    return [one / one.norm() for one in made] if normalize else made


@pytest.mark.parametrize("mode", ["mean", "cls", "last"])
@pytest.mark.parametrize("normalize", [False, True])
def test_pooled_by_the_call_or_the_manifest(backbone, folder, states, tmp_path, mode, normalize):
    want = torch.stack(vectors(states, mode, normalize))
    got = backbone.predict(TEXTS, "plain", pooling=mode, normalize=normalize)
    torch.testing.assert_close(torch.tensor(got), want, atol=1e-5, rtol=1e-5)
    own = shutil.copytree(folder, tmp_path / "pooled")
    Manifest("feature-extraction", BaseIdentity("x"), pooling=Pooling(mode, normalize)).write(own)
    backbone.load(own)
    torch.testing.assert_close(torch.tensor(backbone.predict(TEXTS, "pooled")), want, atol=1e-5, rtol=1e-5)
    alone = torch.tensor(backbone.predict(TEXTS[0], "pooled"))
    torch.testing.assert_close(alone, want[0], atol=1e-5, rtol=1e-5)
    tokens = backbone.predict(TEXTS[0], "pooled", pooling="none")
    torch.testing.assert_close(torch.tensor(tokens[0]), states[0], atol=1e-5, rtol=1e-5)


def test_the_bare_backbone_pools_when_asked(backbone):
    (vector,) = backbone.predict(TEXTS[:1], pooling="mean")
    (tokens,) = backbone.predict(TEXTS[:1])
    torch.testing.assert_close(torch.tensor(vector), torch.tensor(tokens[0]).mean(0), atol=1e-6, rtol=1e-6)


def test_the_other_switch_stays_the_manifests(backbone, folder, states, tmp_path):
    own = shutil.copytree(folder, tmp_path / "unit")
    Manifest("feature-extraction", BaseIdentity("x"), pooling=Pooling("mean", normalize=True)).write(own)
    backbone.load(own)
    for params, want in (({"pooling": "cls"}, ("cls", True)), ({"normalize": False}, ("mean", False))):
        got = torch.tensor(backbone.predict(TEXTS, "unit", **params))
        torch.testing.assert_close(got, torch.stack(vectors(states, *want)), atol=1e-5, rtol=1e-5)


def test_tokens_are_counted_as_they_were_read(backbone, folder, tmp_path):
    """With the special ones, the prefix, and after a text was cut."""
    told = backbone.predict(TEXTS, "plain", pooling="mean", count_tokens=True)
    assert [row["tokens"] for row in told] == [len(backbone.tokenizer(text)["input_ids"]) for text in TEXTS]
    assert [row["features"] for row in told] == backbone.predict(TEXTS, "plain", pooling="mean", count_tokens=False)
    (states,) = backbone.predict(TEXTS[:1], "plain", count_tokens=True)
    assert states == {"features": backbone.predict(TEXTS[:1], "plain")[0], "tokens": len(states["features"][0])}
    own = shutil.copytree(folder, tmp_path / "cut")
    preprocessing = Preprocessing(prefix="bank ", max_length=5)
    Manifest("feature-extraction", BaseIdentity("x"), preprocessing=preprocessing).write(own)
    backbone.load(own)
    assert [row["tokens"] for row in backbone.predict(TEXTS, "cut", count_tokens=True)] == [5, 4, 5]


def test_what_cant_be_pooled(backbone):
    with pytest.raises(UsageError, match="count_tokens=2: expected True or False"):
        backbone.predict(TEXTS, "plain", count_tokens=2)
    with pytest.raises(UsageError, match="pooling='max': expected mean, cls, last, or none"):
        backbone.predict(TEXTS, "plain", pooling="max")
    with pytest.raises(UsageError, match="pass pooling as well"):
        backbone.predict(TEXTS, "plain", normalize=True)


@pytest.mark.parametrize("trained_on", ["encoder", "both"])
def test_t5_gives_its_encoders_states(bases, tmp_path, trained_on):
    """Its decoder has no input of its own here; sentence embeddings of T5 are the encoder's (Ni et al. 2022)."""
    from peft import LoraConfig, PeftModel, get_peft_model

    folder = tmp_path / "t5"
    if trained_on == "encoder":
        torch.manual_seed(1)
        settings = LoraConfig(r=4, target_modules=["q", "wo"], init_lora_weights=False, task_type="FEATURE_EXTRACTION")
        get_peft_model(T5EncoderModel.from_pretrained(bases("t5")), settings).save_pretrained(folder)
        reference = PeftModel.from_pretrained(T5EncoderModel.from_pretrained(bases("t5")), folder).eval()
    else:
        make_adapter(bases("t5"), folder, task="feature-extraction")
        reference = peft_reference(bases("t5"), folder, task="feature-extraction").base_model.model.encoder
    backbone = Backbone.from_pretrained(str(bases("t5")))
    backbone.load(folder)
    for text in TEXTS:
        inputs = backbone.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            want = reference(**inputs).last_hidden_state[0]
        got = torch.tensor(backbone.predict(text, "t5")[0])
        torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
