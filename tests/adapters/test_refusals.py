"""What must not load: each refused by name, and the backbone as it was."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.hub.errors import (
    BaseMismatchError,
    BaseNotFoundError,
    CheckpointError,
    KeyMismatchError,
    NoEffectError,
    UnsafeFileError,
    UnsupportedAdapterError,
    UsageError,
)
from lorary.hub.manifest import BaseIdentity, Manifest
from tiny import make_adapter, make_base, peft_reference

KEY = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.fixture
def backbone(bases):
    return Backbone.from_pretrained(str(bases("llama")))


@pytest.fixture
def adapter(bases, tmp_path):
    return make_adapter(bases("llama"), tmp_path / "adapter", task="text-generation")


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def change_config(folder, **fields):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refuse(backbone, adapter, error, match):
    good = backbone.logits([[7, 8]], None)[0]
    with pytest.raises(error, match=match):
        backbone.load(adapter)
    assert backbone.adapters == []
    assert torch.equal(backbone.logits([[7, 8]], None)[0], good)


def test_a_missing_tensor(backbone, adapter):
    change_tensors(adapter, lambda tensors: tensors.pop(KEY))
    refuse(backbone, adapter, KeyMismatchError, f"missing: {KEY}")


def test_a_missing_site(backbone, adapter):
    def drop(tensors):
        tensors.pop(KEY)
        tensors.pop(KEY.replace("lora_A", "lora_B"))

    change_tensors(adapter, drop)
    refuse(backbone, adapter, KeyMismatchError, r"missing: .*layers\.0\.self_attn\.q_proj\.lora_A")


def test_a_renamed_key(backbone, adapter):
    change_tensors(adapter, lambda tensors: tensors.update({f"base_model.{KEY}": tensors.pop(KEY)}))
    refuse(backbone, adapter, KeyMismatchError, rf"unexpected: base_model\.{KEY}")


def test_all_keys_under_another_prefix(backbone, adapter):
    """PEFT loads this with a warning at most, and answers as the bare base does."""

    def rename(tensors):
        for key in list(tensors):
            tensors[key.replace("base_model.model.", "model.")] = tensors.pop(key)

    change_tensors(adapter, rename)
    refuse(backbone, adapter, KeyMismatchError, "missing: .*unexpected: ")


def test_another_shape(backbone, adapter):
    change_tensors(adapter, lambda tensors: tensors.update({KEY: torch.zeros(4, 16)}))
    refuse(backbone, adapter, KeyMismatchError, r"is \[4, 16\], the backbone needs \[4, 32\]")


def test_another_architecture(backbone, bases, tmp_path):
    adapter = make_adapter(bases("gpt2"), tmp_path / "gpt2", task="text-generation")
    refuse(backbone, adapter, KeyMismatchError, "trained on another architecture")


def test_zero_everywhere(backbone, adapter):
    change_tensors(adapter, lambda tensors: tensors.update({k: v * 0 for k, v in tensors.items() if "lora_B" in k}))
    refuse(backbone, adapter, NoEffectError, "every lora_B is zero")


def test_an_effect_too_small_to_see(backbone, adapter):
    change_tensors(adapter, lambda tensors: tensors.update({k: v * 1e-30 for k, v in tensors.items() if "lora_B" in k}))
    refuse(backbone, adapter, NoEffectError, "answers the same with it as without")


def test_embeddings_are_read_before_the_output_layer(backbone, bases, tmp_path):
    adapter = make_adapter(bases("llama"), tmp_path / "output", task="text-generation", target_modules=["lm_head"])
    backbone.load(adapter)
    backbone.unload("output")
    change_config(adapter, task_type="FEATURE_EXTRACTION")
    refuse(backbone, adapter, NoEffectError, "acts on 'lm_head' alone, after the states")


def test_nan(backbone, adapter):
    change_tensors(adapter, lambda tensors: tensors[KEY].fill_(float("nan")))
    refuse(backbone, adapter, NoEffectError, "NaN")


def test_another_base(backbone, adapter, tmp_path):
    other = Backbone.from_pretrained(str(make_base("llama", tmp_path / "other", seed=9)))
    Manifest(task="text-generation", base=other.identity).write(adapter)
    refuse(backbone, adapter, BaseMismatchError, "fingerprint")
    loaded = backbone.load(adapter, allow_base_mismatch=True)
    assert "fingerprint" in loaded.notes[-1]


def test_the_same_base_under_another_name_loads(backbone, adapter, bases, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(bases("llama"), copy)
    other = Backbone.from_pretrained(str(copy), quantization="nf4")
    Manifest(task="text-generation", base=other.identity).write(adapter)
    assert backbone.load(adapter).notes == (f"trained on {str(copy)!r}, loaded on {str(bases('llama'))!r}",)


def test_a_foreign_adapter_says_that_its_base_is_unverified(backbone, adapter):
    (note,) = backbone.load(adapter).notes
    assert "base unverified" in note


@pytest.mark.parametrize(
    "fields",
    [
        {"init_lora_weights": "pissa"}, {"init_lora_weights": "olora"}, {"use_qalora": True},
        {"kasa_config": {"beta": 0.1}}, {"arrow_config": {"top_k": 2}}, {"a_field_of_tomorrow": 7},
    ],
    ids=str,
)  # fmt: skip
def test_configurations_that_plain_lora_would_get_wrong(backbone, adapter, fields):
    change_config(adapter, **fields)
    refuse(backbone, adapter, UnsupportedAdapterError, next(iter(fields)))


def test_unknown_fields_that_are_off_do_no_harm(backbone, adapter):
    change_config(adapter, a_field_of_tomorrow=None, another=False)
    assert backbone.load(adapter).name == "adapter"


def test_dora_tensors(backbone, bases, tmp_path):
    adapter = make_adapter(bases("llama"), tmp_path / "dora", task="text-generation", use_dora=True)
    change_config(adapter, use_dora=False)
    refuse(backbone, adapter, KeyMismatchError, "use_dora is off")
    change_config(adapter, use_dora=True)
    change_tensors(adapter, lambda tensors: tensors.pop(next(key for key in tensors if "magnitude" in key)))
    refuse(backbone, adapter, KeyMismatchError, "missing: .*lora_magnitude_vector")


def test_embeddings_that_peft_saved_unchanged_are_no_obstacle(backbone, adapter, bases):
    embedding = backbone.model.get_input_embeddings().weight.detach().clone()
    key = "base_model.model.model.embed_tokens.weight"
    change_tensors(adapter, lambda tensors: tensors.update({key: embedding}))
    backbone.load(adapter)
    change_tensors(adapter, lambda tensors: tensors.update({key: embedding + 1}))
    with pytest.raises(UnsupportedAdapterError, match="other values"):
        backbone.load(adapter)


def test_a_head_that_was_never_saved(bases, tmp_path):
    """PEFT keeps a `classifier` and a `score` unasked, but not T5's head, which was random in training."""
    adapter = make_adapter(bases("t5"), tmp_path / "adapter", task="text-classification")
    backbone = Backbone.from_pretrained(str(bases("t5")))
    with pytest.raises(KeyMismatchError, match=r"missing: classification_head\.dense\.bias"):
        backbone.load(adapter)


def test_a_head_without_classes(bases, tmp_path):
    adapter = make_adapter(bases("bert"), tmp_path / "adapter", task="text-classification")
    change_tensors(adapter, lambda tensors: tensors.update({k: v[:0] for k, v in tensors.items() if "classifier" in k}))
    with pytest.raises(KeyMismatchError, match=r"classifier\.bias is empty; classifier\.weight is empty"):
        Backbone.from_pretrained(str(bases("bert"))).load(adapter)


def test_pickles(backbone, adapter):
    weights = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(weights, adapter / "adapter_model.bin")
    refuse(backbone, adapter, UnsafeFileError, "never loaded")


@pytest.mark.parametrize(
    ("config", "change", "match"),
    [
        ({"lora_bias": True}, lambda t: None, r"missing: .*lora_B\.bias"),
        ({"modules_to_save": ["lm_head"]}, lambda t: None, r"missing: base_model\.model\.lm_head\.weight"),
        ({"modules_to_save": ["embed_tokens"]}, lambda t: None, r"missing: .*\.embed_tokens\.weight"),
        ({"modules_to_save": ["norm"]}, lambda t: None, r"missing: .*; base_model\.model\.model\.norm\.weight"),
        (
            {"modules_to_save": ["lm_head"]},
            lambda t: t.update({"base_model.model.lm_head.weight": torch.ones(47, 32)}),
            r"lm_head\.weight is \[47, 32\]",
        ),
        (
            {"modules_to_save": ["lm_head"]},
            lambda t: t.update({"base_model.model.lm_head.bias": torch.ones(44)}),
            r"missing: .*lm_head\.weight.*unexpected: .*lm_head\.bias",
        ),
        (
            {},
            lambda t: t.update({KEY.replace("lora_A.weight", "lora_B.bias"): torch.ones(32)}),
            "lora_bias is off",
        ),
        ({}, lambda t: t.update({"base_model.model.model.norm.__class__": torch.ones(1)}), "no parameter"),
    ],
)  # fmt: skip
def test_what_modules_to_save_and_lora_bias_promise(backbone, adapter, config, change, match):
    change_config(adapter, **config)
    change_tensors(adapter, change)
    refuse(backbone, adapter, KeyMismatchError, match)


@pytest.mark.parametrize(
    "fields",
    [
        {"r": "4"}, {"r": 0}, {"r": None}, {"r": True}, {"lora_alpha": "8"}, {"lora_alpha": None},
        {"rank_pattern": ["q_proj"]}, {"rank_pattern": {"q_proj": "2"}}, {"rank_pattern": {"q_proj(": 2}},
        {"target_modules": "q{1000000000}"}, {"rank_pattern": {"(?:" * 6000 + "q" + ")*" * 6000: 2}},
        {"target_modules": 7}, {"target_modules": None}, {"target_modules": []}, {"target_modules": "(a+)+$("},
        {"alora_invocation_tokens": [10**12]}, {"alora_invocation_tokens": "go"},
        {"task_type": ["CAUSAL_LM"]}, {"modules_to_save": "lm_head"}, {"layers_to_transform": "1"},
    ],
    ids=lambda fields: str(fields)[:60],
)  # fmt: skip
def test_values_of_the_wrong_kind(backbone, adapter, fields):
    change_config(adapter, **fields)
    with pytest.raises(UnsupportedAdapterError):
        backbone.load(adapter)


def test_a_pattern_made_to_take_forever(backbone, adapter):
    """Python's own `re` takes longer than anybody waits on this one."""
    change_config(adapter, rank_pattern={"(([a-z._0-9])+)+[A-Z]": 2})
    assert backbone.load(adapter).rank == 4


def test_more_names_than_there_is_time_for(backbone, adapter):
    """An expression for each of them and for each module takes minutes."""
    names = [f"x{number}y" for number in range(20_000)]
    change_config(adapter, modules_to_save=names)
    assert backbone.load(adapter, "many").rank == 4
    for fields in ({"modules_to_save": [f"{name}." for name in names]}, {"layers_pattern": names}):
        change_config(adapter, **({"modules_to_save": None, "layers_to_transform": [0]} | fields))
        with pytest.raises(UnsupportedAdapterError, match=f"more than 1,000 patterns in {next(iter(fields))}"):
            backbone.load(adapter)


def test_tensors_for_a_module_that_the_config_doesnt_target(backbone, adapter):
    change_config(adapter, exclude_modules=["layers.0.self_attn.q_proj"])
    refuse(backbone, adapter, KeyMismatchError, r"unexpected: .*q_proj.* \(the config doesn't target it\)")


def test_numbers_that_overflow(backbone, adapter):
    change_config(adapter, lora_alpha=1e39)
    refuse(backbone, adapter, NoEffectError, "NaN or infinity")


def test_weights_that_arent_numbers_with_a_fraction(backbone, adapter):
    change_tensors(adapter, lambda tensors: tensors.update({KEY: torch.ones(4, 32, dtype=torch.int64)}))
    refuse(backbone, adapter, UnsupportedAdapterError, "expected floating-point")


def test_ten_thousand_ways_to_begin_a_key(backbone, adapter):
    extra = {f"base_model.model.x{index}.lora_A.weight": torch.ones(1) for index in range(10_000)}
    change_tensors(adapter, lambda tensors: tensors.update(extra))
    refuse(backbone, adapter, KeyMismatchError, "unexpected: .* and 9995 more")


def test_a_head_that_reads_a_part_the_base_lacks(tmp_path):
    """A masked language model's checkpoint has no pooler; a classifier on it would read a new random one each time."""
    from transformers import AutoModelForMaskedLM

    base = make_base("bert", tmp_path / "base")
    AutoModelForMaskedLM.from_pretrained(base).save_pretrained(base)
    lora = {"target_modules": ["query"]}
    lossy = make_adapter(base, tmp_path / "lossy", task="text-classification", **lora)
    whole = make_adapter(base, tmp_path / "whole", task="text-classification", modules_to_save=["pooler"], **lora)
    tagger = make_adapter(base, tmp_path / "tagger", task="token-classification", **lora)
    backbone = Backbone.from_pretrained(str(base))
    with pytest.raises(KeyMismatchError, match=r"pooler\.dense\.weight \(the base's files lack it too"):
        backbone.load(lossy)
    for adapter in (whole, tagger):
        backbone.load(adapter)


def test_a_model_that_carries_an_adapter_is_no_backbone(backbone, bases, adapter):
    model = peft_reference(bases("llama"), adapter, task="text-generation")
    for wrapped in (model, model.base_model.model):
        with pytest.raises(UsageError, match="already carries an adapter"):
            Backbone.from_model(wrapped, backbone.tokenizer)


def test_a_truncated_file(backbone, adapter):
    path = adapter / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    refuse(backbone, adapter, CheckpointError, "copy it again")


def test_a_fingerprint_that_is_unknown_is_not_a_mismatch(backbone, adapter):
    Manifest(task="text-generation", base=BaseIdentity("org/unknown")).write(adapter)
    assert "base unverified" in backbone.load(adapter).notes[0]


def test_a_base_with_code_of_its_own(tmp_path, monkeypatch):
    """An adapter may name anybody's base; transformers would ask at the terminal whether to run its code."""
    base = make_base("llama", tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    code = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (base / "config.json").write_text(json.dumps({**config, "model_type": "own", "auto_map": code}))
    (base / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")

    asked = []
    monkeypatch.setattr("builtins.input", lambda *_: asked.append(True) or "n")
    with pytest.raises(BaseNotFoundError, match="contains custom code"):
        Backbone.from_pretrained(str(base))
    assert (asked, (tmp_path / "ran").exists()) == ([], False)
