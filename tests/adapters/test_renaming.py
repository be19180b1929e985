"""Older checkpoints' keys: renamed as PEFT renames them, and PEFT asked only where they don't fit as they stand."""

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.hub.errors import KeyMismatchError
from tiny import make_adapter, task_class

MAPPING = {r"\.attention\.": ".self_attn."}


@pytest.fixture
def older(bases, tmp_path):
    """An adapter from when the model called its `self_attn` `attention`."""
    adapter = make_adapter(bases("llama"), tmp_path / "older", task="text-generation", lora_bias=True)
    path = adapter / "adapter_model.safetensors"
    save_file({key.replace(".self_attn.", ".attention."): t for key, t in load_file(path).items()}, path)
    return adapter


def model_with_mapping(base):
    model = task_class("text-generation").from_pretrained(base)
    model._checkpoint_conversion_mapping = MAPPING  # what transformers' models have for checkpoints of before
    return model


def test_renamed_keys_go_into_the_slots(bases, older):
    backbone = Backbone.from_model(model_with_mapping(bases("llama")), None)
    backbone.load(older)
    assert backbone.stats().slots_used == 1
    reference = PeftModel.from_pretrained(model_with_mapping(bases("llama")), older).eval()
    row = [7, 8, 9, 10]
    with torch.no_grad():
        want = reference(input_ids=torch.tensor([row])).logits[0]
    torch.testing.assert_close(backbone.logits([row], "older")[0], want, atol=1e-5, rtol=1e-5)
    assert set(backbone.state("older")) == set(load_file(older / "adapter_model.safetensors"))


def test_names_that_nothing_maps_are_refused_as_they_stand(bases, older):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    with pytest.raises(KeyMismatchError, match=r"unexpected: .*layers\.0\.attention\."):
        backbone.load(older)
    assert backbone.adapters == []


def test_plain_lora_imports_no_peft(forks, bases, tmp_path):
    """It takes longer than loading a small model."""
    adapter = make_adapter(bases("llama"), tmp_path / "plain", task="text-generation")
    script = (
        "import sys\n"
        "for name in [name for name in sys.modules if name.split('.')[0] in ('lorary', 'peft')]:\n"
        "    del sys.modules[name]\n"
        "sys.modules['peft'] = None  # whoever imports it gets an error\n"
        "from lorary.adapters import Backbone\n"
        f"backbone = Backbone.from_pretrained({str(bases('llama'))!r})\n"
        f"backbone.load({str(adapter)!r})\n"
        "backbone.generate(['profit rose', 'a dog'], ['plain', None], max_new_tokens=2)\n"
        "print('done')\n"
    )
    ended = forks.run("builtins:exec", script, {"__name__": "__main__"})
    assert (ended.code, ended.out) == (0, "done\n"), ended.err
