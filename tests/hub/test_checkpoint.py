import json
import os

import pytest

from checkpoints import lora_tensors, make_checkpoint, make_manifest, write_safetensors
from lorary.hub.base_files import resolve_base
from lorary.hub.checkpoint import canonical_config, read_checkpoint
from lorary.hub.errors import BaseNotFoundError, CheckpointError, UnsafeFileError
from lorary.hub.manifest import FORMAT, BaseIdentity, Numerics, Prompt


def digest(folder):
    return read_checkpoint(folder).digest


def test_reads_a_checkpoint(tmp_path):
    (make_checkpoint(tmp_path) / "stranger.txt").write_text("left where it is")
    checkpoint = read_checkpoint(tmp_path)
    assert (checkpoint.peft_type, checkpoint.rank, checkpoint.parameters) == ("LORA", 2, 16)
    assert sorted(checkpoint.files) == ["adapter_config.json", "adapter_model.safetensors", "lorary.json"]
    assert checkpoint.size_bytes == (tmp_path / "adapter_model.safetensors").stat().st_size
    assert read_checkpoint(checkpoint.files).digest == checkpoint.digest


@pytest.mark.parametrize(("r", "rank"), [(8, 8), (True, None), (2**70, None), (-1, None), ("8", None), (None, None)])
def test_a_rank_that_is_none(tmp_path, r, rank):
    assert read_checkpoint(make_checkpoint(tmp_path, r=r)).rank == rank


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": ["value", "query"]},
        {"some_new_field": None, "another": False, "a_list": [], "a_dict": {}, "a_text": ""},
        {"base_model_name_or_path": "/home/me/copy", "revision": "main", "peft_version": "9.9", "inference_mode": True},
    ],
)
def test_the_digest_ignores_order_and_fields_that_are_off(tmp_path, config):
    assert digest(make_checkpoint(tmp_path / "a")) == digest(make_checkpoint(tmp_path / "b", **config))


@pytest.mark.parametrize(
    "config", [{"lora_alpha": 5}, {"use_rslora": True}, {"target_modules": ["query"]}, {"layers_to_transform": 0}]
)
def test_the_digest_knows_each_field_that_matters(tmp_path, config):
    assert digest(make_checkpoint(tmp_path / "a")) != digest(make_checkpoint(tmp_path / "b", **config))


def test_the_digest_knows_each_byte_of_each_tensor(tmp_path):
    before = digest(make_checkpoint(tmp_path))
    weights = tmp_path / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert digest(tmp_path) != before


def test_the_digest_ignores_the_tensors_order_in_the_file(tmp_path):
    before = digest(make_checkpoint(tmp_path))
    write_safetensors(tmp_path / "adapter_model.safetensors", dict(reversed(lora_tensors().items())))
    assert digest(tmp_path) == before


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"labels": ("positive", "negative")}, False),
        ({"prompt": Prompt("instruction", "Q: {prompt}")}, False),
        ({"task": "token-classification"}, False),
        ({"base": BaseIdentity("org/tiny", fingerprint="0" * 64)}, False),
        ({"base": BaseIdentity("mirror/tiny", fingerprint=make_manifest().base.fingerprint)}, True),
        ({"provenance": {"seed": 7}}, True),
        ({"domain": "legal"}, True),
        ({"golden_rows": ((1, 2, 3),)}, True),
        ({"numerics": Numerics("nf4")}, True),
    ],
)
def test_the_digest_and_the_manifest(tmp_path, changes, same):
    before = digest(make_checkpoint(tmp_path / "a"))
    after = digest(make_checkpoint(tmp_path / "b", manifest=make_manifest(**changes)))
    assert (before == after) is same


def test_attachments_are_not_identity(tmp_path):
    before = digest(make_checkpoint(tmp_path))
    (tmp_path / "README.md").write_text("# A card")
    assert digest(tmp_path) == before


def test_canonical_config_keeps_zeros():
    config = {"peft_type": "LORA", "lora_dropout": 0.0, "layers_to_transform": 0, "bias": None, "flag": False}
    assert canonical_config(config) == {"peft_type": "LORA", "lora_dropout": 0.0, "layers_to_transform": 0}


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tmp_path, name):
    (make_checkpoint(tmp_path) / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_a_registry_lacks_is_named(tmp_path, name):
    files = read_checkpoint(make_checkpoint(tmp_path)).files
    with pytest.raises(CheckpointError, match=f"^tone@1: no {name} among"):
        read_checkpoint({other: path for other, path in files.items() if other != name}, shown="tone@1")
    with pytest.raises(CheckpointError, match="can't be read"):
        read_checkpoint({**files, name: tmp_path / "gone"})


def test_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        read_checkpoint(tmp_path / "nowhere")


def test_pickles_are_refused_by_name(tmp_path):
    weights = make_checkpoint(tmp_path) / "adapter_model.safetensors"
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(UnsafeFileError, match=r"adapter_model\.bin.*never loaded"):
        read_checkpoint(tmp_path)


def test_weights_in_mlx_s_own_format_are_told_as_such(tmp_path):
    weights = make_checkpoint(tmp_path) / "adapter_model.safetensors"
    weights.rename(tmp_path / "adapters.safetensors")
    with pytest.raises(CheckpointError, match=r"no adapter_model\.safetensors; .*adapters\.safetensors is mlx-lm's"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors", "README.md"])
def test_links_out_of_the_folder_are_refused(tmp_path, name):
    target = tmp_path / "elsewhere"
    path = make_checkpoint(tmp_path / "a") / name
    if path.exists():
        path.rename(target)
    path.symlink_to(target)
    with pytest.raises(UnsafeFileError, match=r"is a link to .*elsewhere"):
        read_checkpoint(tmp_path / "a")


def test_a_link_to_itself_is_refused(tmp_path):
    path = make_checkpoint(tmp_path) / "lorary.json"
    path.unlink()
    path.symlink_to(path)
    with pytest.raises(UnsafeFileError, match="is a link to"):
        read_checkpoint(tmp_path)


def test_the_hub_caches_own_links_are_fine(tmp_path):
    snapshot = make_checkpoint(tmp_path / "models--a--b/snapshots/abc")
    (tmp_path / "models--a--b/blobs").mkdir()
    for path in list(snapshot.iterdir()):
        blob = tmp_path / "models--a--b/blobs" / path.name
        path.rename(blob)
        path.symlink_to(os.path.relpath(blob, snapshot))
    assert read_checkpoint(snapshot).rank == 2


@pytest.mark.parametrize(
    "text",
    ["", "not JSON", "[]", "{}", '{"peft_type": 3}', "[" * 100_000,
     '{"peft_type":"LORA","a":' + "[" * 80 + "]" * 80 + "}",
     '{"peft_type":"LORA","x":"\\ud800"}', '{"peft_type":"LORA","peft_type":"IA3"}', '{"peft_type":"LORA","a":NaN}'],
)  # fmt: skip
def test_a_config_that_is_none(tmp_path, text):
    (make_checkpoint(tmp_path) / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        read_checkpoint(tmp_path)


def test_a_config_that_is_no_text(tmp_path):
    (make_checkpoint(tmp_path) / "adapter_config.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="UTF-8"):
        read_checkpoint(tmp_path)


def test_no_tensors(tmp_path):
    write_safetensors(make_checkpoint(tmp_path) / "adapter_model.safetensors", {})
    with pytest.raises(CheckpointError, match="no tensors"):
        read_checkpoint(tmp_path)


def test_a_newer_manifest(tmp_path):
    path = make_checkpoint(tmp_path) / "lorary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": FORMAT + 1}))
    with pytest.raises(CheckpointError, match="newer than this lorary reads"):
        read_checkpoint(tmp_path)


def test_an_error_in_the_weights_names_their_source(tmp_path):
    weights = make_checkpoint(tmp_path / "a") / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes() + b"x")
    for source in (weights.parent, {path.name: path for path in weights.parent.iterdir()}):
        with pytest.raises(CheckpointError, match=r"^ann/tone@v1/adapter_model\.safetensors: 1 bytes follow"):
            read_checkpoint(source, shown="ann/tone@v1")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ('{"peft_type": "LORA", "lora_alpha": 1e400}', "1e400 is too large"),
        ('{"peft_type": "LORA", "lora_alpha": -1e999}', "is too large"),
        ('{"peft_type": "LORA", "r": 1' + "0" * 40 + "}", "has 41 digits"),
        ('{"peft_type": "LORA", "r": -1' + "0" * 40 + "}", "has 41 digits"),
        ('{"peft_type": "LORA", "r": 1' + "0" * 10_000 + "}", "has 10001 digits"),
        ('{"peft_type": "LORA", "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested"),
        ('{"peft_type": "\\u001b[31mLORA"}', "no method's name"),
        ('{"peft_type": "' + "A" * 100_000 + '"}', "no method's name"),
        ('{"peft_type": "LORA", "base_model_name_or_path": ["org/tiny"]}', "expected a model's id"),
        ('{"peft_type": "LORA", "base_model_name_or_path": "' + "a/" * 5_000 + '"}', "expected a model's id"),
        ('{"peft_type": "LORA"}' + " " * 5_000_000, "5,000,021 bytes is too large"),
    ],
)
def test_a_config_made_to_break_what_comes_later(tmp_path, text, word):
    make_checkpoint(tmp_path)
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(tmp_path)
    assert word in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("base", ["~nobody-here/base", f"/{'a' * 300}/base", "a\0b", "x/" * 400])
def test_a_base_that_can_be_no_folder(registry, tmp_path, base):
    folder = make_checkpoint(tmp_path / "it", manifest=False, base_model_name_or_path=base)
    assert registry.add(folder, name="it", domain="legal").number == 1
    with pytest.raises(BaseNotFoundError):
        resolve_base(base)


def test_an_adapter_in_a_folder_of_its_name(tmp_path):
    make_checkpoint(tmp_path / "saved" / "sql")
    with pytest.raises(CheckpointError, match=r"no adapter_config\.json.*there are some in sql: name one"):
        read_checkpoint(tmp_path / "saved")
