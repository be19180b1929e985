"""Adapters that were saved from wrapped models: their keys are read as what they mean; PEFT reads none of them."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.adapters.matching.wrappers import plain_names
from lorary.hub.errors import KeyMismatchError
from methods import make_method
from tiny import make_adapter, peft_reference

ROW = [7, 8, 9, 10, 11]
ROOT = "base_model.model."
KINDS = {
    "compiled, then adapted": lambda key: key.replace(ROOT, f"{ROOT}_orig_mod."),
    "adapted, then compiled": lambda key: f"_orig_mod.{key}",
    "data parallel": lambda key: f"module.{key}",
    "compiled and parallel": lambda key: f"module._orig_mod.{key}",
    "compiled layer by layer": lambda key: key.replace("layers.0.", "layers.0._orig_mod."),
    "sharded": lambda key: key.replace("base_model.", "base_model._fsdp_wrapped_module."),
    "checkpointed": lambda key: key.replace(".self_attn.", "._checkpoint_wrapped_module.self_attn."),
    "the adapter's name": lambda key: key.replace("_A.weight", "_A.sql.weight").replace("_B.weight", "_B.sql.weight"),
}


def wrapped(folder, kind):
    path = folder / "adapter_model.safetensors"
    save_file({KINDS[kind](key): tensor for key, tensor in load_file(path).items()}, path)
    return folder


def logits(reference):
    with torch.no_grad():
        return reference(input_ids=torch.tensor([ROW])).logits[0]


@pytest.mark.parametrize("kind", KINDS)
def test_they_are_the_adapter_that_was_saved(bases, tmp_path, kind):
    """In a slot, with a module trained whole, and through PEFT."""
    base = bases("llama")
    plain = {"modules_to_save": ["o_proj"], "target_modules": ["q_proj", "up_proj"]}
    slot = make_adapter(base, tmp_path / "slot", task="text-generation", **plain)
    own = make_adapter(base, tmp_path / "own", task="text-generation", trainable_token_indices=[7, 8], seed=2)
    backbone = Backbone.from_pretrained(str(base))
    for folder in (slot, own):
        want = logits(peft_reference(base, folder, task="text-generation"))
        backbone.load(folder, "before")
        backbone.load(wrapped(folder, kind))
        torch.testing.assert_close(backbone.logits([ROW], folder.name)[0], want, atol=1e-5, rtol=1e-5)
        state = backbone.state("before")
        found = backbone.state(folder.name)
        names = plain_names(found)
        again = {names[key]: tensor for key, tensor in found.items()}
        assert state.keys() == again.keys()
        assert all(torch.equal(state[key], again[key]) for key in state)
    assert backbone.stats().slots_used == 1


@pytest.mark.parametrize("kind", KINDS)
def test_they_blend(bases, tmp_path, kind):
    base = bases("llama")
    backbone = Backbone.from_pretrained(str(base))
    for seed, name in enumerate(("one", "two"), start=1):
        backbone.load(make_adapter(base, tmp_path / name, task="text-generation", seed=seed))
    backbone.blend({"one": 0.6, "two": 0.4}, "before")
    backbone.load(wrapped(tmp_path / "one", kind))
    backbone.blend({"one": 0.6, "two": 0.4}, "after")
    before, after = (backbone.logits([ROW], name)[0] for name in ("before", "after"))
    torch.testing.assert_close(after, before, atol=1e-6, rtol=1e-6)


def test_other_methods(bases, tmp_path):
    base = bases("llama")
    adapter = make_method(base, tmp_path / "own", "LOHA", task="text-generation")
    want = logits(peft_reference(base, adapter, task="text-generation"))
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(wrapped(adapter, "adapted, then compiled"))
    torch.testing.assert_close(backbone.logits([ROW], "own")[0], want, atol=1e-5, rtol=1e-5)


def test_peft_reads_none_of_them(bases, tmp_path):
    """Should PEFT mend it, there is less to do here."""
    base = bases("llama")
    adapter = make_adapter(base, tmp_path / "own", task="text-generation")
    want = logits(peft_reference(base, adapter, task="text-generation"))
    with pytest.warns(UserWarning, match="missing adapter keys"):
        found = logits(peft_reference(base, wrapped(adapter, "data parallel"), task="text-generation"))
    assert not torch.allclose(found, want, atol=1e-3)


def test_names_that_only_look_like_it():
    """A module of the model's own, adapters of two names, and keys that would become one."""
    assert plain_names(["base_model.model.module.q.lora_A.weight"]) == {
        "base_model.model.module.q.lora_A.weight": "base_model.model.module.q.lora_A.weight"
    }
    two = ["base_model.model.q.lora_A.sql.weight", "base_model.model.q.lora_A.law.weight"]
    assert plain_names(two) == dict(zip(two, two, strict=True))
    same = ["_orig_mod.base_model.model.q.lora_A.weight", "base_model.model.q.lora_A.weight"]
    assert plain_names(same) == dict(zip(same, same, strict=True))
    mine = "base_model.model.my_orig_mod.q.lora_A.weight"
    assert plain_names([mine]) == {mine: mine}


def test_anything_else_is_refused_by_name(bases, tmp_path):
    adapter = make_adapter(bases("llama"), tmp_path / "own", task="text-generation")
    path = adapter / "adapter_model.safetensors"
    save_file({f"wrapped.{key}": tensor for key, tensor in load_file(path).items()}, path)
    with pytest.raises(KeyMismatchError, match=r"unexpected: wrapped\.base_model"):
        Backbone.from_pretrained(str(bases("llama"))).load(adapter)
