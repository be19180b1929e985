"""Adapters that mlx-lm trained become PEFT's, or are refused by name."""

import json
import random

import pytest

from checkpoints import write_safetensors
from lorary.hub.errors import CheckpointError, UnsafeFileError
from lorary.hub.importing import import_folders
from lorary.hub.importing.mlx import read_mlx

SIZES = {"F32": 4, "BF16": 2}


def tensor(seed, *shape, dtype="F32"):
    count = 1
    for size in shape:
        count *= size
    return dtype, list(shape), random.Random(seed).randbytes(count * SIZES.get(dtype, 1))


def layer(path, seed=0, **options):
    return {
        f"{path}.lora_a": tensor(seed, 6, 2, **options),
        f"{path}.lora_b": tensor(seed + 1, 2, 4, **options),
    }


@pytest.fixture
def trained(tmp_path):
    """A folder as mlx-lm leaves it; ``config`` changes its settings, ``lora`` those of its LoRA."""

    def trained(tensors=None, lora=None, **config):
        folder = tmp_path / "stories"
        folder.mkdir(exist_ok=True)
        parameters = {"rank": 2, "dropout": 0.0, "scale": 10.0, **(lora or {})}
        settings = {
            "fine_tune_type": "lora", "lora_parameters": parameters, "model": "org/tiny", "num_layers": 2, "seed": 3,
            "iters": 50, "batch_size": 4, "learning_rate": 1e-5, "data": "org/rows", "max_seq_length": 2048, **config,
        }  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        usual = {f"model.layers.{index}.self_attn.q_proj": index for index in (2, 3)}
        given = (
            tensors if tensors is not None else {k: v for p, seed in usual.items() for k, v in layer(p, seed).items()}
        )
        write_safetensors(folder / "adapters.safetensors", given)
        return folder

    return trained


def columns(content, rows, width, size):
    """The bytes of a matrix [rows, width], transposed."""
    cells = [content[start : start + size] for start in range(0, len(content), size)]
    return b"".join(cells[row * width + column] for column in range(width) for row in range(rows))


@pytest.mark.parametrize("dtype", SIZES)
def test_the_numbers_are_the_same_under_pefts_names(trained, dtype):
    given = layer("model.layers.3.mlp.up_proj", dtype=dtype)
    with read_mlx(trained(given)) as (checkpoint, told):
        assert told["iters"] == 50
        path = checkpoint.files["adapter_model.safetensors"]
        content = path.read_bytes()
        found = {
            name: (info.dtype, info.shape, content[info.start : info.end]) for name, info in checkpoint.tensors.items()
        }
    prefix, size = "base_model.model.model.layers.3.mlp.up_proj", SIZES[dtype]
    assert found == {
        f"{prefix}.lora_A.weight": (dtype, (2, 6), columns(given["model.layers.3.mlp.up_proj.lora_a"][2], 6, 2, size)),
        f"{prefix}.lora_B.weight": (dtype, (4, 2), columns(given["model.layers.3.mlp.up_proj.lora_b"][2], 2, 4, size)),
    }


def test_it_comes_into_the_catalogue_with_what_is_known_of_it(trained, registry):
    (outcome,) = import_folders(registry, trained(), domain="fiction")
    version, checkpoint = registry.resolve("stories"), registry.checkpoint("stories")
    assert (outcome.state, outcome.note) == ("taken", "")
    assert (version.task, version.method, version.rank, version.base_id) == ("text-generation", "lora", 2, "org/tiny")
    assert {name: checkpoint.config[name] for name in ("r", "lora_alpha", "target_modules", "layers_to_transform")} == {
        "r": 2, "lora_alpha": 20, "target_modules": ["self_attn.q_proj"], "layers_to_transform": [2, 3],
    }  # fmt: skip
    told = checkpoint.told
    assert (told["imported"]["tool"], told["data"]["train"]["name"], told["seed"]) == ("mlx-lm", "org/rows", 3)
    assert told["recipe"]["training"] == {
        "max_steps": 50, "batch_size": 4, "learning_rate": 1e-5, "max_length": 2048, "seed": 3,
    }  # fmt: skip
    (again,) = import_folders(registry, trained(), domain="fiction")
    assert again.state == "there already"
    assert registry.verify() == []


def test_layers_that_differ_are_named_each(trained):
    given = layer("model.layers.2.self_attn.q_proj") | layer("model.layers.3.mlp.up_proj") | layer("lm_head")
    with read_mlx(trained(given)) as (checkpoint, _):
        assert checkpoint.config["target_modules"] == [
            "lm_head", "model.layers.2.self_attn.q_proj", "model.layers.3.mlp.up_proj",
        ]  # fmt: skip
        assert "layers_to_transform" not in checkpoint.config


@pytest.mark.parametrize("told", [{"fine_tune_type": "dora"}, {"fine_tune_type": None, "use_dora": True}])
def test_dora_has_its_magnitude(trained, told):
    path = "model.layers.3.self_attn.q_proj"
    folder = trained(layer(path) | {f"{path}.m": tensor(5, 4)}, **told)
    if told["fine_tune_type"] is None:  # of an older version
        config = json.loads((folder / "adapter_config.json").read_text())
        del config["fine_tune_type"]
        (folder / "adapter_config.json").write_text(json.dumps(config))
    with read_mlx(folder) as (checkpoint, _):
        assert checkpoint.config["use_dora"] is True
        assert checkpoint.tensors[f"base_model.model.{path}.lora_magnitude_vector"].shape == (4,)


def test_mlx_s_copy_of_a_base_is_told_unless_the_base_is_given(trained, registry):
    folder = trained(model="mlx-community/Tiny-4bit")
    (outcome,) = import_folders(registry, folder, domain="fiction")
    assert outcome.note.startswith("its base mlx-community/Tiny-4bit is mlx's copy of another; --base ORG/NAME")
    (outcome,) = import_folders(registry, folder, domain="fiction", name="other", base="org/tiny")
    assert (outcome.note, registry.resolve("other").base_id) == ("", "org/tiny")


Q = "model.layers.3.self_attn.q_proj"


@pytest.mark.parametrize(
    ("tensors", "lora", "config", "why"),
    [
        (None, {}, {"fine_tune_type": "full"}, "the base's own weights, trained whole"),
        (None, {}, {"fine_tune_type": "other"}, "of the type 'other'"),
        (None, {}, {"lora_parameters": None}, "has the rank None|has the scale None"),
        (None, {"rank": 3}, {}, r"expected \[in, 3\]"),
        (None, {"rank": True}, {}, "has the rank True"),
        (None, {"scale": "20"}, {}, "has the scale '20'"),
        (None, {"alpha": 16}, {}, "has an alpha"),
        (None, {}, {"fine_tune_type": "dora"}, r"has no model\.layers\.2\.self_attn\.q_proj\.m"),
        ({}, {}, {}, "holds no tensors"),
        ({f"{Q}.lora_a": tensor(0, 6, 2)}, {}, {}, r"has no .*lora_b"),
        ({f"{Q}.weight": tensor(0, 6, 2)}, {}, {}, r"holds .*weight, which is none of lora_a, lora_b"),
        (layer(Q) | {f"{Q}.m": tensor(0, 4)}, {}, {}, r"holds .*\.m, which is none"),
        ({f"{Q}.lora_a": tensor(0, 2, 6, 2), f"{Q}.lora_b": tensor(0, 2, 2, 4)}, {}, {}, "experts that mlx-lm keeps"),
        ({f"{Q}.lora_a": tensor(0, 6, 2, dtype="U8"), f"{Q}.lora_b": tensor(0, 2, 4)}, {}, {}, r"lora_a is U8"),
        (layer(Q) | {f"{Q}.m": tensor(0, 6)}, {}, {"fine_tune_type": "dora"}, r"\.m has the shape \[6\]; expected"),
        (layer("model.embed_tokens"), {}, {}, "is LoRA on an embedding"),
        (layer(""), {}, {}, "which is none of"),
    ],
)  # fmt: skip
def test_what_has_no_same_in_peft_is_refused_by_name(trained, registry, tensors, lora, config, why):
    with pytest.raises(CheckpointError, match=why):
        list(import_folders(registry, trained(tensors, lora, **config), domain="fiction"))
    assert registry.versions() == []


@pytest.mark.parametrize("text", ["[", "[]", '{"a": 1, "a": 2}'])
def test_a_config_that_is_none(trained, registry, text):
    folder = trained()
    (folder / "adapter_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"adapter_config\.json: (not valid JSON|expected an object)"):
        list(import_folders(registry, folder, domain="fiction"))


@pytest.mark.parametrize("name", ["adapter_config.json", "adapters.safetensors"])
def test_no_link_is_followed(trained, registry, tmp_path, name):
    folder = trained()
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    with pytest.raises(UnsafeFileError, match="is a link"):
        list(import_folders(registry, folder, domain="fiction"))


def test_an_alpha_that_is_the_rank_changes_nothing(trained):
    with read_mlx(trained(lora={"alpha": 2})) as (checkpoint, _):
        assert checkpoint.config["lora_alpha"] == 20


def test_a_scale_that_is_no_whole_number_is_kept(trained):
    with read_mlx(trained(lora={"scale": 0.3})) as (checkpoint, _):
        assert checkpoint.config["lora_alpha"] / checkpoint.config["r"] == 0.3
