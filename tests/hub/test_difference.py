import json
import math
import re
import struct
import time

import numpy
import pytest

from checkpoints import make_checkpoint, make_manifest, write_safetensors
from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.comparing.norms import compare_norms
from lorary.hub.comparing.scaling import rank_and_scale
from lorary.hub.errors import CheckpointError, UnsupportedAdapterError

MODULE = "base_model.model.layer.query"


def values(shape, seed):
    return numpy.random.default_rng(seed).normal(size=shape).astype("<f4")


def tensor(array, dtype="F32"):
    if dtype == "BF16":
        return dtype, list(array.shape), (array.view("<u4") >> 16).astype("<u2").tobytes()
    return dtype, list(array.shape), array.astype({"F16": "<f2", "F32": "<f4", "F64": "<f8"}[dtype]).tobytes()


def checkpoint(folder, tensors, **config):
    make_checkpoint(folder, **config)
    write_safetensors(folder / "adapter_model.safetensors", tensors)
    return read_checkpoint(folder)


def pair(a, b, module=MODULE, dtype="F32"):
    return {f"{module}.lora_A.weight": tensor(a, dtype), f"{module}.lora_B.weight": tensor(b, dtype)}


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({"r": 3, "lora_alpha": 6}, 2),
        ({"r": 3, "lora_alpha": 6, "use_rslora": True}, 6 / math.sqrt(3)),
        ({"r": 8, "lora_alpha": 6, "rank_pattern": {"query": 3}, "alpha_pattern": {"layer.query": 12}}, 4),
    ],
)
def test_the_norms_are_those_of_the_whole_updates(tmp_path, config, scale):
    a, b, c, d = values((3, 7), 1), values((5, 3), 2), values((2, 7), 3), values((5, 2), 4)
    left = checkpoint(tmp_path / "a", pair(a, b), **config)
    right = checkpoint(tmp_path / "b", pair(c, d), r=2, lora_alpha=4)
    (found,) = compare_norms(left, right)
    first, second = scale * b.astype(float) @ a, 2 * d.astype(float) @ c
    assert found.module == "layer.query"
    assert found.left == pytest.approx(numpy.linalg.norm(first))
    assert found.right == pytest.approx(numpy.linalg.norm(second))
    assert found.difference == pytest.approx(numpy.linalg.norm(first - second))
    assert found.relative == pytest.approx(found.difference / max(found.left, found.right))


def test_other_factors_of_the_same_update_are_no_difference(tmp_path):
    a, b = values((3, 7), 1), values((5, 3), 2)
    left = checkpoint(tmp_path / "a", pair(a, b), r=3)
    right = checkpoint(tmp_path / "b", pair(2 * a[::-1], b[:, ::-1] / 2), r=3)
    (found,) = compare_norms(left, right)
    assert found.relative == pytest.approx(0, abs=1e-12)
    opposite = checkpoint(tmp_path / "c", pair(-a, b), r=3)
    assert compare_norms(left, opposite)[0].relative == pytest.approx(2)


@pytest.mark.parametrize("dtype", ["BF16", "F16", "F64"])
def test_dtypes(tmp_path, dtype):
    a, b = numpy.float32([[1.5, -2, 0.25]]), numpy.float32([[3], [-0.5]])
    left = checkpoint(tmp_path / "a", pair(a, b, dtype=dtype), r=1, lora_alpha=1)
    right = checkpoint(tmp_path / "b", pair(a, b), r=1, lora_alpha=1)
    (found,) = compare_norms(left, right)
    assert (found.left, found.difference) == (pytest.approx(numpy.linalg.norm(b @ a)), pytest.approx(0, abs=1e-12))


def test_convolutions_embeddings_and_whole_tensors(tmp_path):
    a, b = values((2, 3, 4, 4), 1), values((6, 2, 1, 1), 2)
    head = values((3, 4), 3)
    tensors = {
        **pair(a, b, "base_model.model.conv"),
        "base_model.model.words.lora_embedding_A": tensor(values((2, 9), 4)),
        "base_model.model.words.lora_embedding_B": tensor(values((4, 2), 5)),
        "base_model.model.classifier.weight": tensor(head),
        "base_model.model.lonely.lora_A.weight": tensor(head),
    }
    left = checkpoint(tmp_path / "a", tensors, r=2, lora_alpha=2)
    changed = {**tensors, "base_model.model.classifier.weight": tensor(head + 1)}
    del changed["base_model.model.lonely.lora_A.weight"]
    found = {one.module: one for one in compare_norms(left, checkpoint(tmp_path / "b", changed, r=2, lora_alpha=2))}
    assert [*found] == ["classifier.weight", "conv", "words", "lonely.lora_A.weight"]  # the most different first
    assert found["conv"].left == pytest.approx(numpy.linalg.norm(b.reshape(6, 2) @ a.reshape(2, -1)))
    assert found["classifier.weight"].difference == pytest.approx(math.sqrt(12))
    assert (found["lonely.lora_A.weight"].note, found["lonely.lora_A.weight"].relative) == ("only left", None)


def test_what_can_not_be_computed_is_told(tmp_path):
    good = pair(values((2, 4), 1), values((4, 2), 2))
    left = checkpoint(tmp_path / "good", good)
    nan = pair(values((2, 4), 1), values((4, 2), 2) * numpy.float32("nan"))
    (found,) = compare_norms(left, checkpoint(tmp_path / "nan", nan))
    assert (found.right, found.difference, found.note) == (None, None, "right: holds NaN or infinity")
    (found,) = compare_norms(left, checkpoint(tmp_path / "wide", pair(values((2, 5), 1), values((4, 2), 2))))
    assert (found.relative, found.note) == (None, "[4, 4] and [4, 5] can't be compared")
    eight = {name: ("F8_E4M3", [2, 4] if "_A" in name else [4, 2], bytes(8)) for name in good}
    (found,) = compare_norms(left, checkpoint(tmp_path / "eight", eight))
    assert found.note == "right: norms of F8_E4M3 aren't computed"


@pytest.mark.parametrize("config", [{"lora_alpha": "much"}, {"r": 0}, {"alpha_pattern": [1]}, {"lora_alpha": [2]}])
def test_configs_that_make_no_sense(tmp_path, config):
    left = checkpoint(tmp_path / "a", pair(values((2, 4), 1), values((4, 2), 2)))
    with pytest.raises(CheckpointError, match=r"gives layer\.query no rank and alpha"):
        compare_norms(left, checkpoint(tmp_path / "b", pair(values((2, 4), 1), values((4, 2), 2)), **config))


def test_factors_that_do_not_fit(tmp_path):
    left = checkpoint(tmp_path / "a", pair(values((2, 4), 1), values((4, 3), 2)))
    with pytest.raises(CheckpointError, match="don't fit together"):
        compare_norms(left, left)


@pytest.fixture
def two(registry, tmp_path):
    data = {"data": {"test": {"name": "test.jsonl", "sha256": "a", "rows": 9}}, "seed": 1, "curve": [[1, 2]] * 50}
    first = make_manifest(provenance=data)
    second = make_manifest(
        labels=("bad", "good\x1b[31m"),
        provenance={**data, "data": {"test": {"name": "<b>.jsonl", "sha256": "b", "rows": 9}}, "seed": 2, "curve": []},
    )
    registry.add(make_checkpoint(tmp_path / "a", manifest=first), name="a", metrics={"test": {"f1": 0.5, "loss": 1}})
    # As random bytes make no numbers, the second one's weights are proper ones.
    folder = make_checkpoint(tmp_path / "b", manifest=second, lora_alpha=8, target_modules=["value", "query"])
    write_safetensors(folder / "adapter_model.safetensors", pair(values((2, 4), 1), values((4, 2), 2)))
    registry.add(folder, name="b", metrics={"test": {"f1": 0.75}})
    return registry


def test_the_command_shows_what_differs(two, tmp_path, capsys):
    words = ["--registry", str(two.path)]
    assert main(["diff", "a", "b@1", *words]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    assert ["lora_alpha", "4", "8"] in lines
    assert ["test.name", "test.jsonl", "<b>.jsonl"] in lines
    assert ["seed", "1", "2"] in lines
    assert ["f1", "test", "0.5", "0.75", "+0.25"] in lines
    assert ["loss", "test", "1", "-"] in lines
    assert "target_modules" not in out  # a set
    assert "curve" not in out
    assert "\x1b" not in out
    assert any(line[:1] == ["layer.query"] for line in lines)


def test_a_folder_is_compared_too_and_the_same_is_called_the_same(two, tmp_path, capsys):
    words = ["--registry", str(two.path)]
    assert main(["diff", "b", str(tmp_path / "b"), *words]) == 0
    out = capsys.readouterr().out
    assert "the same adapter" in out.splitlines()[0]
    assert out.splitlines()[-3:] == ["", "weights", "the same in 1 of 1 modules"]
    assert "lora_alpha" not in out


def test_json(two, capsys):
    assert main(["diff", "a", "b", "--json", "--registry", str(two.path)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["same_digest"] is False
    assert {"field": "seed", "left": 1, "right": 2} in told["sections"]["provenance"]
    assert told["metrics"][0] == {"split": "test", "metric": "f1", "left": 0.5, "right": 0.75, "difference": 0.25}
    assert told["weights"][0]["module"] == "layer.query"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("a", "nobody"), 1, "no adapter named"),
        (("a", "./nowhere"), 1, "no such folder"),
        (("a", "user/repo"), 2, "is on the Hub"),
        (("a",), 2, "Missing argument"),
        (("a", "b@"), 2, "nothing follows the @"),
    ],
)
def test_wrong_input_is_one_error(two, capsys, words, code, message):
    assert main(["diff", *words, "--registry", str(two.path)]) == code
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_a_truncated_file_is_named(two, tmp_path, capsys):
    weights = tmp_path / "b" / "adapter_model.safetensors"
    weights.write_bytes(struct.pack("<Q", 10**9))
    assert main(["diff", "a", str(tmp_path / "b"), "--registry", str(two.path)]) == 1
    assert "truncated" in capsys.readouterr().err


NAMES = ("layer.query", "model.layer.0.query", "query", "model.layerXquery", "key.query_b", "", "model.layer.10.query")


@pytest.mark.parametrize(
    "pattern", ["query", "layer.query", "layer.0.query", ".query", "0.query", "y", "model.layer.1..query"]
)
def test_plain_patterns_mean_what_the_expression_means(pattern):
    """PEFT's own: peft.utils.other.get_pattern_key."""
    for name in NAMES:
        expected = 3 if re.match(rf"(.*\.)?({pattern})$", name) else 8
        assert rank_and_scale({"r": 8, "lora_alpha": 8, "rank_pattern": {pattern: 3}}, name)[0] == expected


def test_as_many_patterns_as_a_model_has_modules():
    started = time.monotonic()
    names = [f"model.layers.{index}.q_proj" for index in range(20_000)]
    config = {"r": 8, "lora_alpha": 8, "rank_pattern": dict.fromkeys(names, 4)}
    assert rank_and_scale(config, names[-1])[0] == 4
    assert time.monotonic() - started < 2
    many = {"r": 8, "lora_alpha": 8, "rank_pattern": dict.fromkeys([f"(x{index})" for index in range(2_000)], 4)}
    with pytest.raises(UnsupportedAdapterError, match="more than 1,000 regular expressions"):
        rank_and_scale(many, "q_proj")
