"""A pushed adapter in others' hands: PEFT, the loader, and another registry's loader answer as the one at home."""

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.manifest import Manifest
from lorary.hub.remote import pull, push
from tiny import make_adapter, peft_reference

ROW = [7, 8, 9]


@pytest.fixture
def pushed(hub, monkeypatch, bases, registry, tmp_path):
    """The registry that it was pushed from, and the Hub that has it."""
    hub.users["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    folder = make_adapter(bases("bert"), tmp_path / "tone", task="text-classification")
    identity = Backbone.from_pretrained(str(bases("bert"))).identity
    Manifest(task="text-classification", base=identity, domain="finance", labels=("down", "flat", "up")).write(folder)
    registry.add(folder, name="tone")
    push(registry, "tone")
    return registry


@pytest.fixture
def expected(pushed, bases):
    backbone = Backbone.from_pretrained(str(bases("bert")), registry=pushed)
    backbone.load("tone")
    return backbone.logits([ROW], "tone")[0]


def test_peft_loads_it_by_its_repository(hub, monkeypatch, pushed, bases, expected):
    from huggingface_hub import hf_api
    from peft import PeftConfig

    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)  # whose functions PEFT calls, and read when it was imported
    model = peft_reference(bases("bert"), "ann/tone", task="text-classification")
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ROW])).logits[0]
    assert torch.allclose(logits, expected, atol=1e-5)
    base = PeftConfig.from_pretrained("ann/tone", revision="v1").base_model_name_or_path
    assert base == "bert"  # the folder's name, not where it is


def test_an_adapter_that_peft_made_comes_in_and_answers_alike(hub, monkeypatch, bases, registry, tmp_path):
    from huggingface_hub import HfApi

    hub.users["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    folder = make_adapter(bases("bert"), tmp_path / "foreign", task="text-classification", seed=3)
    HfApi().create_repo("ann/Their_LoRA")
    HfApi().upload_folder(folder_path=folder, repo_id="ann/Their_LoRA")
    version = pull(registry, "ann/Their_LoRA", domain="legal").version
    assert (version.reference, version.task, version.manifest) == ("their_lora@1", "text-classification", None)
    backbone = Backbone.from_pretrained(str(bases("bert")), registry=registry)
    backbone.load("their_lora")
    model = peft_reference(bases("bert"), folder, task="text-classification")
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([ROW])).logits[0]
    assert torch.allclose(backbone.logits([ROW], "their_lora")[0], expected, atol=1e-5)


@pytest.mark.parametrize("reference", ["ann/tone", "ann/tone@v1"])
def test_the_loader_takes_it_from_the_hub(pushed, bases, expected, reference):
    backbone = Backbone.from_pretrained(str(bases("bert")))
    loaded = backbone.load(reference)
    assert torch.equal(backbone.logits([ROW], loaded.name)[0], expected)
    assert loaded.digest == pushed.resolve("tone").digest


def test_the_loader_takes_it_from_the_registry_that_pulled_it(pushed, bases, expected, tmp_path):
    elsewhere = Registry(tmp_path / "elsewhere.db")
    pull(elsewhere, "ann/tone")
    backbone = Backbone.from_pretrained(str(bases("bert")), registry=elsewhere)
    backbone.load("tone")
    assert torch.equal(backbone.logits([ROW], "tone")[0], expected)
