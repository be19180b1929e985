"""What must not load through PEFT, which warns at most: each refused by name, and the backbone as it was."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.adapters.matching.methods import REFUSED
from lorary.adapters.proving.golden import write_golden
from lorary.hub.errors import (
    BaseMismatchError,
    GoldenMismatchError,
    KeyMismatchError,
    NoEffectError,
    UnsupportedAdapterError,
)
from lorary.hub.manifest import Manifest
from methods import make_method
from tiny import make_adapter, make_base

KINDS = {
    "IA3": "base_model.model.model.layers.0.self_attn.q_proj.ia3_l",
    "LOHA": "base_model.model.model.layers.0.self_attn.q_proj.hada_w1_a",
    "LN_TUNING": "base_model.model.model.layers.0.input_layernorm.ln_tuning_layers.weight",
    "PREFIX_TUNING": "prompt_embeddings",
    "PROMPT_TUNING": "prompt_embeddings",
    "TRAINABLE_TOKENS": "base_model.model.model.embed_tokens.trainable_tokens_delta",
    "VBLORA": "base_model.vblora_vector_bank",
}


@pytest.fixture(scope="module")
def backbone(bases):
    return Backbone.from_pretrained(str(bases("llama")))


@pytest.fixture
def method(bases, tmp_path):
    """A function: an adapter of a method with its tensors and its config changed."""

    def make(name, change=lambda tensors: None, **config):
        targets = {"LN_TUNING": {"target_modules": ["input_layernorm"]}}.get(name, {})
        folder = make_method(bases("llama"), tmp_path / "own", name, task="text-generation", **targets)
        tensors = load_file(folder / "adapter_model.safetensors")
        change(tensors)
        save_file(tensors, folder / "adapter_model.safetensors")
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    return make


def refuse(backbone, adapter, error, match):
    bare = backbone.logits([[7, 8]], None)[0]
    with pytest.raises(error, match=match) as found:
        backbone.load(adapter)
    assert "\n" not in str(found.value)
    assert backbone.adapters == []
    assert torch.equal(backbone.logits([[7, 8]], None)[0], bare)


@pytest.mark.parametrize("name", KINDS)
def test_a_missing_tensor(backbone, method, name):
    def drop(tensors):
        tensors["base_model.model.elsewhere.weight"] = tensors.pop(KINDS[name])

    refuse(backbone, method(name, drop), KeyMismatchError, f"missing: {KINDS[name]}.*unexpected: .*elsewhere")


@pytest.mark.parametrize("name", KINDS)
def test_an_unexpected_tensor(backbone, method, name):
    def add(tensors):
        tensors[f"{KINDS[name]}_2"] = torch.ones(2)

    refuse(backbone, method(name, add), KeyMismatchError, f"unexpected: {KINDS[name]}_2")


@pytest.mark.parametrize("name", KINDS)
def test_another_shape(backbone, method, name):
    def widen(tensors):
        tensors[KINDS[name]] = torch.cat([tensors[KINDS[name]]] * 2)

    refuse(backbone, method(name, widen), KeyMismatchError, f"of another shape: {KINDS[name]} is")


@pytest.mark.parametrize("name", KINDS)
def test_nan(backbone, method, name):
    adapter = method(name, lambda tensors: tensors[KINDS[name]].fill_(float("nan")))
    refuse(backbone, adapter, NoEffectError, "NaN")


@pytest.mark.parametrize("config", [{}, {"task_type": "FEATURE_EXTRACTION"}], ids=str)
def test_factors_that_change_nothing(backbone, method, config):
    """Of a language model's embeddings too, whose states are read, and never its vocabulary."""
    adapter = method("IA3", lambda tensors: [tensor.fill_(1) for tensor in tensors.values()], **config)
    refuse(backbone, adapter, NoEffectError, "the same with it as without")


def test_another_architecture(backbone, bases, tmp_path):
    adapter = make_method(bases("gpt2"), tmp_path / "own", "IA3", task="text-generation")
    refuse(backbone, adapter, UnsupportedAdapterError, "PEFT can't put this IA3 adapter into the backbone: .*c_attn")


def test_another_base(backbone, method, tmp_path):
    adapter = method("IA3")
    other = Backbone.from_pretrained(str(make_base("llama", tmp_path / "other", seed=9)))
    Manifest(task="text-generation", base=other.identity).write(adapter)
    refuse(backbone, adapter, BaseMismatchError, "fingerprint")
    assert other.load(adapter).name == "own"


@pytest.mark.parametrize("kind", [*REFUSED, "METHOD_OF_TOMORROW"])
def test_methods_that_dont_load(backbone, method, kind):
    refuse(backbone, method("IA3", peft_type=kind), UnsupportedAdapterError, kind)


def test_another_methods_config(backbone, method):
    adapter = method("IA3", peft_type="LOHA", init_ia3_weights=None)
    refuse(backbone, adapter, KeyMismatchError, r"missing: .*hada_w1_a.*unexpected: .*ia3_l")


@pytest.mark.parametrize(("kind", "config"), [("VERA", {"r": 0}), ("VBLORA", {"vector_length": 0})])
def test_sizes_of_nothing(backbone, method, kind, config):
    refuse(backbone, method(kind, **config), UnsupportedAdapterError, "PEFT can't put this .*zero")


@pytest.mark.parametrize(("kind", "config"), [
    ("OFT", {"num_cayley_neumann_terms": 10**10}), ("VERA", {"r": 10**9}), ("VBLORA", {"num_vectors": 10**12}),
    ("PREFIX_TUNING", {"num_layers": 10**8}), ("PROMPT_TUNING", {"num_virtual_tokens": 10**11}),
    ("HRA", {"r": 10**9}), ("LOHA", {"rank_pattern": {"q_proj": 10**9}}), ("IA3", {"r": -(10**20)}),
    ("LORA", {"bias": "all", "r": 10**9}),
], ids=str)  # fmt: skip
def test_sizes_that_would_take_all_memory_or_time(backbone, bases, tmp_path, method, kind, config):
    if kind == "LORA":
        adapter = make_adapter(bases("gpt2"), tmp_path / "own", task="text-generation", bias="all")
        backbone = Backbone.from_pretrained(str(bases("gpt2")))
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
    else:
        adapter = method(kind, **config)
    refuse(backbone, adapter, UnsupportedAdapterError, f"{list(config)[-1]}=.* expected at most 4,096")


def test_scales_may_be_large(backbone, method):
    backbone.load(method("LOHA", alpha=10**5), "loha")
    backbone.unload("loha")


def test_a_field_of_tomorrow(backbone, method):
    refuse(backbone, method("IA3", a_field_of_tomorrow=7), UnsupportedAdapterError, "a_field_of_tomorrow")


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("IA3", {"target_modules": "(a+)+$("}),
        ("IA3", {"target_modules": 7}),
        ("IA3", {"target_modules": "(([a-z._0-9])+)+[A-Z]"}),
        ("LOHA", {"rank_pattern": {"(([a-z._0-9])+)+[A-Z]": 2}}),
        ("LOHA", {"rank_pattern": {".*" * 14 + "Z": 2}}),
        ("DELORA", {"lambda_pattern": {"(([a-z._0-9])+)+[A-Z]": 2}}),
        ("IA3", {"modules_to_save": ["(([a-z._0-9])+)+[A-Z]"]}),
        ("IA3", {"modules_to_save": [f"x{number}" for number in range(20_000)]}),
        ("IA3", {"modules_to_save": 7}),
    ],
    ids=lambda value: str(value)[:60],
)
def test_patterns_that_arent_any_or_take_forever(backbone, method, kind, config):
    match = "PEFT can't|isn't a regular|more than 1 s|repeats a group|at most 1,000"
    refuse(backbone, method(kind, **config), UnsupportedAdapterError, match)


def test_numbers_of_eight_bits(backbone, method):
    def change(tensors):
        for key, tensor in tensors.items():
            tensors[key] = tensor.to(torch.float8_e4m3fn)

    refuse(backbone, method("IA3", change), UnsupportedAdapterError, "holds F8_E4M3; expected")


def test_patterns_are_resolved(backbone, method, tmp_path):
    pattern = {"target_modules": r".*\.(q|k)_proj"}
    adapter = method("IA3", **pattern)
    backbone.load(adapter)
    backbone.unload("own")


def test_parameters_that_arent_there(backbone, bases, tmp_path):
    experts = {"target_parameters": ["mlp.experts.gate_up_proj"]}
    adapter = make_adapter(bases("mixtral"), tmp_path / "experts", task="text-generation", **experts)
    refuse(backbone, adapter, KeyMismatchError, r"unexpected: .*\.mlp\.experts\.lora_A\.weight")
    adapter = make_adapter(bases("llama"), tmp_path / "own", task="text-generation")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | experts | {"target_modules": []}))
    refuse(backbone, adapter, UnsupportedAdapterError, "no `target_parameters` found")


def test_initialisations_never_touch_the_base(backbone, bases, tmp_path):
    """PiSSA rewrites the weights it is put on, before any of the file's tensors is read."""
    adapter = make_adapter(bases("llama"), tmp_path / "own", task="text-generation", bias="lora_only")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"init_lora_weights": "pissa"}))
    refuse(backbone, adapter, UnsupportedAdapterError, "init_lora_weights")


def test_indices_out_of_bounds(backbone, method):
    """Unchecked, torch's sparse tensors would read and write beyond their memory."""

    def change(tensors):
        for key, tensor in tensors.items():
            if "indices" in key:
                tensor.fill_(1 << 20)

    refuse(backbone, method("SHIRA", change), UnsupportedAdapterError, "PEFT can't")


def test_a_head_that_was_never_saved(bases, tmp_path):
    adapter = make_method(bases("t5"), tmp_path / "own", "IA3", task="text-classification")
    backbone = Backbone.from_pretrained(str(bases("t5")))
    with pytest.raises(KeyMismatchError, match=r"missing: classification_head\.dense\.bias"):
        backbone.load(adapter)


@pytest.mark.parametrize(("family", "task"), [("llama", "text-generation"), ("bert", "text-classification")])
def test_golden_logits(bases, tmp_path, family, task):
    backbone = Backbone.from_pretrained(str(bases(family)))
    adapter = make_method(bases(family), tmp_path / "own", "IA3", task=task)
    backbone.load(adapter)
    assert backbone.verify("own").note == "carries no golden logits"
    rows = ((7, 8, 9), (10, 11))
    answers = [logits[-1] if family == "llama" else logits for logits in backbone.logits(rows, "own")]
    labels = {"labels": ("a", "b", "c")} if family == "bert" else {}
    manifest = Manifest(task, backbone.identity, golden_rows=rows, numerics=backbone.numerics, **labels)
    manifest.write(adapter)
    write_golden(adapter, answers)
    backbone.load(adapter)
    assert backbone.verify("own").matches
    half = Backbone.from_pretrained(str(bases(family)), dtype="bfloat16")
    half.load(adapter)
    report = half.verify("own")
    assert report.matches is None
    assert report.cosine == pytest.approx(1, abs=0.02)
    write_golden(adapter, [row + 1 for row in answers])
    backbone.load(adapter)
    with pytest.raises(GoldenMismatchError, match="golden row 0"):
        backbone.verify("own")
