"""The cases that PEFT's own tests name for mixed batches and hot-swapping, with PEFT's model beside this loader.

docs/benchmarks.md lists them with what each of the two does.
"""

import json

import pytest
import torch
from peft import PeftModel
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from lorary.hub.errors import CheckpointError, KeyMismatchError, UnsupportedAdapterError, UsageError
from tiny import make_adapter, task_class

IDS = torch.tensor([[2, 7, 8, 9], [9, 8, 7, 6], [12, 13, 14, 15], [5, 5, 6, 7], [8, 9, 10, 3], [4, 20, 21, 22]])
TASK = "text-generation"
PAIRS = {
    "mlp": ("llama", {}, {"r": 16}),
    "different_target_layers": ("llama", {"target_modules": ["up_proj"]}, {"target_modules": ["down_proj"]}),
    "partly_overlapping_target_layers": (
        "llama", {"target_modules": ["up_proj"]}, {"target_modules": ["up_proj", "down_proj"]},
    ),
    "conv1d_emb": (
        "gpt2", {"target_modules": ["wte", "c_attn"]}, {"target_modules": ["wte", "c_attn"], "r": 16},
    ),
    "modules_to_save": ("llama", {"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"]}),
}  # fmt: skip


@pytest.fixture
def pair(bases, tmp_path):
    """A function: two adapters on a family's base, on PEFT's model and on a backbone."""

    def make(family, first, second):
        folders = [
            make_adapter(bases(family), tmp_path / f"adapter{seed}", task=TASK, seed=seed, **lora)
            for seed, lora in enumerate((first, second))
        ]
        reference = peft_model(bases(family), folders[0])
        reference.load_adapter(folders[1], adapter_name="adapter1")
        backbone = Backbone.from_pretrained(str(bases(family)))
        for folder in folders:
            backbone.load(folder)
        return reference, backbone

    return make


def peft_model(base, folder):
    return PeftModel.from_pretrained(task_class(TASK).from_pretrained(base), folder, adapter_name="adapter0").eval()


def theirs(reference, ids=IDS, **choice):
    with torch.no_grad():
        return reference(input_ids=ids, **choice).logits


def ours(backbone, names):
    with torch.no_grad(), backbone.using(names) as model:
        return model(input_ids=IDS).logits


@pytest.mark.parametrize("case", PAIRS)
def test_mixed_adapter_batches(pair, case):
    reference, backbone = pair(*PAIRS[case])
    names = ["adapter0", "adapter1", None] * 2
    mixed = ours(backbone, names)
    torch.testing.assert_close(
        mixed, theirs(reference, adapter_names=[name or "__base__" for name in names]), atol=1e-5, rtol=1e-5
    )
    for place, name in enumerate(names[:3]):
        torch.testing.assert_close(mixed[place::3], ours(backbone, [name])[place::3], atol=1e-5, rtol=1e-5)


def test_with_beam_search(pair):
    reference, backbone = pair(*PAIRS["mlp"])
    names = ["adapter0", "adapter1", None]
    inputs = {"input_ids": IDS[:3], "attention_mask": torch.ones_like(IDS[:3])}
    settings = {"num_beams": 4, "max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad(), backbone.using(names) as model:
        got = model.generate(**inputs, **settings)
    with torch.no_grad():
        want = reference.generate(**inputs, **settings, adapter_names=[name or "__base__" for name in names])
    assert torch.equal(got, want)


def test_length_mismatch(pair):
    reference, backbone = pair(*PAIRS["mlp"])
    with pytest.raises(ValueError, match="Length of `adapter_names`"):
        theirs(reference, adapter_names=["adapter0"] * 5)
    with pytest.raises(UsageError, match="5 adapters for 6 rows"):
        backbone.generate(["profit"] * 6, ["adapter0"] * 5)


def test_dora_mixes_here_and_is_refused_there(pair):
    reference, backbone = pair("llama", {"use_dora": True}, {})
    alone = []
    for name in ("adapter0", "adapter1"):
        reference.set_adapter(name)
        alone.append(theirs(reference))
    with pytest.raises(ValueError, match="DoRA"):
        theirs(reference, adapter_names=["adapter0", "adapter1"] * 3)
    mixed = ours(backbone, ["adapter0", "adapter1"] * 3)
    for place, want in enumerate(alone):
        torch.testing.assert_close(mixed[place::2], want[place::2], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"target_modules": ["up_proj"]}, {"target_modules": ["up_proj"]}),
        ({"r": 7, "lora_alpha": 7}, {"r": 13, "lora_alpha": 13, "target_modules": ["up_proj"]}),
        ({"r": 13, "lora_alpha": 13}, {"r": 7, "lora_alpha": 7, "target_modules": ["up_proj"]}),
        ({"target_modules": ["embed_tokens"]}, {"target_modules": ["embed_tokens"], "r": 13}),
    ],
    ids=["same", "larger rank, fewer targets", "smaller rank, fewer targets", "embedding"],
)
def test_hotswap_there_and_back(bases, tmp_path, first, second):
    folders = [
        make_adapter(bases("llama"), tmp_path / str(seed), task=TASK, seed=seed, **lora)
        for seed, lora in enumerate((first, second))
    ]
    alone = [theirs(peft_model(bases("llama"), folder)) for folder in folders]
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(folders[0], "default")
    for which in (0, 1, 0):
        backbone.swap("default", folders[which])
        torch.testing.assert_close(ours(backbone, ["default"]), alone[which], atol=1e-5, rtol=1e-5)


def broken(bases, tmp_path, change):
    """Two adapters, the second with its tensors changed."""
    folders = [make_adapter(bases("llama"), tmp_path / str(seed), task=TASK, seed=seed) for seed in (0, 1)]
    weights = folders[1] / "adapter_model.safetensors"
    tensors = load_file(weights)
    change(tensors)
    save_file(tensors, weights)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(folders[0], "default")
    return backbone, folders


def test_hotswap_missing_key_is_zeroed_there_and_refused_here(bases, tmp_path):
    key = "base_model.model.model.layers.1.mlp.up_proj.lora_A.weight"
    backbone, folders = broken(bases, tmp_path, lambda tensors: tensors.pop(key))
    reference = peft_model(bases("llama"), folders[0])
    hotswap_adapter(reference, str(folders[1]), "adapter0")
    assert not reference.base_model.model.model.layers[1].mlp.up_proj.lora_A["adapter0"].weight.any()
    before = ours(backbone, ["default"])
    with pytest.raises(KeyMismatchError, match=r"missing: .*up_proj.lora_A"):
        backbone.swap("default", folders[1])
    assert torch.equal(ours(backbone, ["default"]), before)


def test_hotswap_extra_key(bases, tmp_path):
    extra = "base_model.model.model.layers.1.mlp.act_fn.lora_A.weight"
    backbone, folders = broken(bases, tmp_path, lambda tensors: tensors.update({extra: torch.ones(4, 32)}))
    with pytest.raises(RuntimeError, match="unexpected keys"):
        hotswap_adapter(peft_model(bases("llama"), folders[0]), str(folders[1]), "adapter0")
    with pytest.raises(KeyMismatchError, match=r"unexpected: .*act_fn"):
        backbone.swap("default", folders[1])


def test_hotswap_wrong_peft_type(bases, tmp_path):
    backbone, folders = broken(bases, tmp_path, lambda tensors: None)
    path = folders[1] / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "peft_type": "LOHA"}))
    with pytest.raises((CheckpointError, UnsupportedAdapterError)):
        backbone.swap("default", folders[1])


def test_hotswap_of_a_name_within_another_name(bases, tmp_path):
    """PEFT matches `sql` in the keys of `sql_v2`, and zeroes what it doesn't find in the new file."""
    folders = [make_adapter(bases("llama"), tmp_path / str(seed), task=TASK, seed=seed) for seed in (0, 1, 2)]
    reference = PeftModel.from_pretrained(
        task_class(TASK).from_pretrained(bases("llama")), folders[0], adapter_name="sql"
    ).eval()
    reference.load_adapter(folders[1], adapter_name="sql_v2")
    reference.set_adapter("sql_v2")
    before = theirs(reference)
    hotswap_adapter(reference, str(folders[2]), "sql")
    assert not torch.allclose(theirs(reference), before, atol=1e-3), "PEFT has mended this: say so in the docs"
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(folders[0], "sql")
    backbone.load(folders[1], "sql_v2")
    before = ours(backbone, ["sql_v2"])
    backbone.swap("sql", folders[2])
    assert torch.equal(ours(backbone, ["sql_v2"]), before)
