"""Golden logits: written with a version, recomputed through the slots."""

from dataclasses import replace

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.proving.golden import (
    TOLERANCE,
    choose_rows,
    compare_golden,
    condense,
    effect_cosine,
    load_tensors,
    write_golden,
)
from lorary.hub.checkpoint import MANIFEST_NAME
from lorary.hub.errors import CheckpointError, GoldenMismatchError
from lorary.hub.manifest import Manifest, Numerics
from methods import make_method
from tiny import make_adapter
from variants import change

ROWS = ((7, 8, 9), (10, 11), (12, 13, 14, 15))


def with_golden(bases, folder, family="bert", task="text-classification", quantization="none", dtype="float32"):
    """An adapter with a manifest and golden logits, and the backbone they were computed on."""
    adapter = make_adapter(bases(family), folder, task=task)
    backbone = Backbone.from_pretrained(str(bases(family)), quantization=quantization, dtype=dtype)
    backbone.load(adapter, "foreign")
    labels = ("a", "b", "c") if "classification" in task else None
    manifest = Manifest(task=task, base=backbone.identity, labels=labels, numerics=backbone.numerics, golden_rows=ROWS)
    manifest.write(adapter)
    write_golden(adapter, [condense(task, row) for row in backbone.logits(ROWS, "foreign")])
    return backbone, adapter


ARITHMETIC = [("none", "float32"), ("none", "bfloat16"), ("nf4", "float32"), ("nf4", "bfloat16"), ("int8", "float32")]


@pytest.mark.parametrize(("quantization", "dtype"), ARITHMETIC)
@pytest.mark.parametrize(("family", "task"), [("bert", "token-classification"), ("llama", "text-generation")])
def test_a_sound_adapter_matches(bases, tmp_path, family, task, quantization, dtype):
    backbone, adapter = with_golden(bases, tmp_path / "a", family, task, quantization, dtype)
    fresh = Backbone.from_pretrained(str(bases(family)), quantization=quantization, dtype=dtype)
    for served in (backbone, fresh):
        served.load(adapter)
        report = served.verify("a")
        assert report.matches is True
        assert report.difference <= TOLERANCE[dtype]


@pytest.mark.parametrize(("quantization", "dtype"), ARITHMETIC)
def test_a_changed_weight_is_noticed(bases, tmp_path, quantization, dtype):
    backbone, adapter = with_golden(bases, tmp_path / "a", quantization=quantization, dtype=dtype)
    arithmetic = "int8" if quantization == "int8" else dtype

    def strengthen(tensors):
        for key, tensor in tensors.items():
            if "lora_B" in key:
                tensor.mul_(3)

    change(adapter, strengthen)
    backbone.load(adapter)
    with pytest.raises(GoldenMismatchError, match=f"golden row [0-2]: logits differ .* is allowed for {arithmetic}"):
        backbone.verify("a")


@pytest.mark.parametrize("kept", ["float16", "bfloat16"])
def test_an_adapter_kept_in_other_numbers_is_judged_by_theirs(bases, tmp_path, kept):
    _, adapter = with_golden(bases, tmp_path / "a")
    served = Backbone.from_pretrained(str(bases("bert")), adapter_dtype=kept)
    served.load(adapter)
    report = served.verify("a")
    assert report.matches is True
    assert 1e-7 < report.difference <= TOLERANCE[kept]
    change(adapter, lambda tensors: [tensor.mul_(3) for key, tensor in tensors.items() if "lora_B" in key])
    served.load(adapter)
    with pytest.raises(GoldenMismatchError, match=f"differ by .* is allowed for {kept}"):
        served.verify("a")


def test_under_other_arithmetic_the_effect_is_compared_but_not_judged(bases, tmp_path):
    _, adapter = with_golden(bases, tmp_path / "a")
    other = Backbone.from_pretrained(str(bases("bert")), quantization="nf4")
    assert "trained on unquantized weights, served on nf4 ones" in other.load(adapter).notes
    report = other.verify("a")
    assert report.matches is None
    assert report.cosine > 0.5
    assert "not judged" in report.note


def test_labels_of_the_manifest_are_shown(bases, tmp_path):
    backbone, adapter = with_golden(bases, tmp_path / "a")
    assert backbone.load(adapter).labels == ("a", "b", "c")
    assert backbone.predict(["profit"], "a")[0]["label"] in {"a", "b", "c"}


def test_an_adapter_without_golden_logits(bases, tmp_path):
    backbone, adapter = with_golden(bases, tmp_path / "a")
    assert backbone.verify("foreign").matches is None
    (adapter / MANIFEST_NAME).unlink()  # whose rows would say what the logits are of
    backbone.load(adapter)
    assert backbone.verify("a").matches is None


def test_rows_that_dont_fit_the_manifest(bases, tmp_path):
    backbone, adapter = with_golden(bases, tmp_path / "a")
    backbone.load(adapter)
    write_golden(adapter, [torch.zeros(3)])
    for use in (lambda: backbone.verify("a"), lambda: backbone.load(adapter)):
        with pytest.raises(CheckpointError, match="holds 1 rows, the manifest names 3"):
            use()


def test_tensors_that_cant_be_read(tmp_path):
    for path in (tmp_path / "none", tmp_path / "text"):
        (tmp_path / "text").write_text("no tensors")
        with pytest.raises(CheckpointError, match=f"{path.name}: not a readable safetensors file"):
            load_tensors(path)


@pytest.mark.parametrize("method", ["slots", "IA3"])
@pytest.mark.parametrize("row", [(7, 44), (7, 999_999_999), (), tuple(range(7, 40)) * 2], ids=str)
def test_rows_that_the_backbone_cant_read(bases, tmp_path, method, row):
    """On a GPU a token beyond the vocabulary ends whatever else the process does there."""
    task = "text-classification"
    if method == "slots":
        adapter = make_adapter(bases("bert"), tmp_path / "a", task=task)
    else:
        adapter = make_method(bases("bert"), tmp_path / "a", method, task=task)
    backbone = Backbone.from_pretrained(str(bases("bert")))
    for rows in ((row,), ((7, 8), row)):
        manifest = Manifest(task=task, base=backbone.identity, labels=("a", "b", "c"), golden_rows=rows)
        manifest.write(adapter)
        with pytest.raises(CheckpointError, match=r"golden rows: expected from 1 to 64 tokens below 44, found"):
            backbone.load(adapter)
    assert backbone.adapters == []
    replace(manifest, golden_rows=((7, 43), (7,) * 64)).write(adapter)
    backbone.load(adapter)


def test_logits_of_another_shape_are_an_error_in_any_arithmetic(bases, tmp_path):
    _, adapter = with_golden(bases, tmp_path / "a")
    write_golden(adapter, [torch.zeros(4) for _ in range(3)])
    for quantization in ("none", "nf4"):
        backbone = Backbone.from_pretrained(str(bases("bert")), quantization=quantization)
        backbone.load(adapter)
        with pytest.raises(GoldenMismatchError, match=r"expected logits of shape \[4\], found \[3\]"):
            backbone.verify("a")


@pytest.mark.parametrize(("quantization", "dtype", "limit"), [
    ("none", "float32", 1e-4), ("nf4", "bfloat16", 5e-2), ("none", "float16", 1e-2), ("int8", "float32", 0.1),
    ("int8", "bfloat16", 0.1),
])  # fmt: skip
def test_how_far_logits_may_differ(quantization, dtype, limit):
    """Relative to 1 + the row's largest logit; the worst of all rows is told."""
    numerics = Numerics(quantization, dtype, "cpu")
    golden = [torch.tensor([-3.0, 2.0]), torch.tensor([0.0, 1.0])]
    moved = [torch.tensor([0.0, 4 * 0.9 * limit]), torch.tensor([2 * 0.5 * limit, 0.0])]
    found = compare_golden(golden, [row + move for row, move in zip(golden, moved, strict=True)], numerics)
    assert found == pytest.approx(0.9 * limit, rel=0.01)
    for wrong in (4 * 1.1 * limit, torch.nan, torch.inf):
        for place in range(2):
            rows = [row.clone() for row in golden]
            rows[place][0] += wrong / (1 + place)
            with pytest.raises(GoldenMismatchError, match=f"golden row {place}: logits differ by"):
                compare_golden(golden, rows, numerics)


def test_the_cosine_is_that_of_what_the_adapter_adds():
    """Over all rows together, and whatever the bare backbone answers."""
    bare = [torch.tensor([90.0, -70.0]), torch.tensor([50.0, 80.0])]
    added = [torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])]
    golden = [row + more for row, more in zip(bare, added, strict=True)]
    for actual, cosine in (
        ([3 * more for more in added], 1),
        ([-more for more in added], -1),
        ([torch.tensor([0.0, 5.0]), torch.tensor([5.0, 0.0])], 0),
        ([added[0], torch.zeros(2)], 5**-0.5),
    ):
        rows = [row + more for row, more in zip(bare, actual, strict=True)]
        assert effect_cosine(golden, rows, bare) == pytest.approx(cosine, abs=1e-4)


def test_rows_are_spread_over_those_given():
    rows = [[index] * (index + 1) for index in range(10)]
    assert choose_rows([[], *rows], count=3, longest=5) == [[0], [3] * 4, [6] * 5]
