"""The gate: a checkpoint that was damaged between saving and checking is refused, and the damage named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import MobileBertConfig, MobileBertModel

from lorary.adapters import Backbone
from lorary.hub.checkpoint import MANIFEST_NAME, WEIGHTS_NAME
from lorary.hub.errors import GateError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.gate import METRIC_TOLERANCE, compare_metrics, compare_tensors, demand_learned, gate
from lorary.training.one_run import run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.save import save
from samples import save_base, wordpiece_tokenizer


class Run:
    """A finished run with its files, before the gate."""

    def __init__(self, recipe, folder):
        self.prepared = prepare(recipe, load_data(recipe), Reporter())
        self.finished = run(self.prepared, folder / "checkpoints", Reporter())
        self.files = folder / "files"
        save(self.finished.prepared, self.finished.trained, self.files)

    def check(self, **changes):
        finished = replace(self.finished, **changes)
        base = self.prepared.base
        backbone = Backbone.from_model(self.prepared.model.unload(), base.tokenizer, identity=base.identity, slots=1)
        gate(self.files, backbone, self.prepared.task, finished.trained, finished.rows, finished.expected)
        return backbone

    def edit_tensors(self, edit):
        tensors = load_file(self.files / WEIGHTS_NAME)
        edit(tensors)
        save_file(tensors, self.files / WEIGHTS_NAME)

    def edit_manifest(self, edit):
        path = self.files / MANIFEST_NAME
        manifest = json.loads(path.read_text())
        edit(manifest)
        path.write_text(json.dumps(manifest))


@pytest.fixture(params=["text-classification", "token-classification", "text-generation"])
def any_run(request, make_recipe, tmp_path):
    return Run(make_recipe(request.param, rows=32), tmp_path)


@pytest.fixture
def tagger(make_recipe, tmp_path):
    return Run(make_recipe("token-classification", rows=32), tmp_path)


def first(tensors, part):
    return next(key for key in sorted(tensors) if part in key)


def test_what_was_saved_passes_and_is_taken_off_again(any_run):
    assert any_run.check().adapters == []


def test_a_renamed_key_is_named(any_run):
    def rename(tensors):
        key = first(tensors, "lora_A")
        tensors[key.replace("base_model.model.", "base_model.model.model.x.")] = tensors.pop(key)

    any_run.edit_tensors(rename)
    with pytest.raises(GateError, match=r"the saved adapter doesn't load: .*layer.*0.*lora_A"):
        any_run.check()


def test_a_zeroed_b_matrix_is_named(any_run):
    keys = []

    def zero(tensors):
        keys.append(first(tensors, "lora_B"))
        tensors[keys[0]] = torch.zeros_like(tensors[keys[0]])

    any_run.edit_tensors(zero)
    with pytest.raises(GateError) as caught:
        any_run.check()
    assert f"{keys[0]!r}: the loaded tensor differs from the trained one by 1 of its largest value" in str(caught.value)


def test_all_b_matrices_zeroed_is_an_adapter_that_does_nothing(tagger):
    def zero(tensors):
        for key in tensors:
            if "lora_B" in key:
                tensors[key] = torch.zeros_like(tensors[key])

    tagger.edit_tensors(zero)
    with pytest.raises(GateError, match="every lora_B is zero, so the adapter does nothing"):
        tagger.check()


def test_another_bases_fingerprint_is_named(any_run):
    any_run.edit_manifest(lambda manifest: manifest["base"].update(fingerprint="0" * 64, id="another/base"))
    with pytest.raises(GateError, match=r"the saved adapter doesn't load: .*(another/base|base)"):
        any_run.check()


def test_a_missing_head_is_named(tagger):
    tagger.edit_tensors(lambda tensors: tensors.pop(first(tensors, "classifier.bias")))
    with pytest.raises(GateError, match=r"doesn't load: .*missing: classifier\.bias"):
        tagger.check()


def test_a_changed_head_is_named(tagger):
    def change(tensors):
        tensors[first(tensors, "classifier.weight")] += 0.01

    tagger.edit_tensors(change)
    with pytest.raises(GateError, match=r"classifier\.weight': the loaded tensor differs"):
        tagger.check()


def test_a_truncated_file_is_named(tagger):
    content = (tagger.files / WEIGHTS_NAME).read_bytes()
    (tagger.files / WEIGHTS_NAME).write_bytes(content[:-100])
    with pytest.raises(GateError, match=rf"doesn't load: {tagger.files}/adapter_model.safetensors: .*copy it again"):
        tagger.check()


def test_a_scale_that_changed_shows_in_the_golden_logits(tagger):
    """The tensors are the same; only the config's alpha makes another model of them."""
    path = tagger.files / "adapter_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({**config, "lora_alpha": 3 * config["lora_alpha"]}))
    with pytest.raises(GateError, match="golden row 0: logits differ by"):
        tagger.check()


def test_labels_in_another_order_show_in_the_metric(make_recipe, tmp_path):
    classifier = Run(make_recipe(rows=64, layers=2, **{"training.epochs": 6}), tmp_path)
    classifier.edit_manifest(lambda manifest: manifest["labels"].reverse())
    with pytest.raises(GateError, match=r"metric 'accuracy' on held-out rows: \d\.\d+ in training, 0\.\d+ with"):
        classifier.check()


def test_a_base_that_lets_no_gradient_through_is_told_of(make_small, registry, tmp_path):
    recipe = make_small(rows=8, held=4, **{"training.max_steps": 1})
    base = shutil.copytree(recipe.base, tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors["pooler.dense.weight"] *= 1e6  # its tanh is 1 or -1 for every text
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    with pytest.raises(GateError, match="every lora_B is zero after the training as it was before it: in no step did"):
        train(recipe.model_copy(update={"base": str(base)}), registry)
    assert registry.versions() == []


@pytest.mark.parametrize("task", ["fill-mask", "text-classification"])
def test_an_empty_weight_of_the_head_is_no_obstacle(task, make_recipe, registry, tmp_path):
    """As MobileBERT has one where its embeddings are as wide as its hidden states."""
    sizes = {
        "hidden_size": 16, "embedding_size": 16, "intra_bottleneck_size": 8, "true_hidden_size": 8,
        "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64,
    }  # fmt: skip
    tokenizer = wordpiece_tokenizer()
    model = MobileBertModel(MobileBertConfig(vocab_size=len(tokenizer), pad_token_id=0, **sizes))
    base = str(save_base(model, tokenizer, tmp_path / "base"))
    recipe = make_recipe(task, rows=8, held=4, **{"training.max_steps": 1}).model_copy(update={"base": base})
    assert train(recipe, registry).reference == "tiny@1"
    backbone = Backbone.from_pretrained(base, registry=registry)
    backbone.load("tiny")
    assert backbone.predict("profit [MASK] the bank", "tiny")


def test_differences_are_told_one_by_one():
    tensors = {"a": torch.ones(2, 2), "b": torch.ones(3)}
    compare_tensors(tensors, {key: tensor.clone() for key, tensor in tensors.items()}, 1e-6)
    empty = {**tensors, "none": torch.ones(0, 32)}
    compare_tensors(empty, empty, 1e-6)
    with pytest.raises(GateError, match=r"'none': trained with shape \[0, 32\], loaded with \[0, 1\]"):
        compare_tensors(empty, {**empty, "none": torch.ones(0, 1)}, 1e-6)
    with pytest.raises(GateError, match="'b' was trained, but the loaded adapter lacks it"):
        compare_tensors(tensors, {"a": tensors["a"]}, 1e-6)
    with pytest.raises(GateError, match="the loaded adapter has 'b', which wasn't trained"):
        compare_tensors({"a": tensors["a"]}, tensors, 1e-6)
    with pytest.raises(GateError, match=r"'a': trained with shape \[2, 2\], loaded with \[4\]"):
        compare_tensors(tensors, {**tensors, "a": torch.ones(4)}, 1e-6)
    with pytest.raises(GateError, match="'a': the loaded tensor differs"):
        compare_tensors(tensors, {**tensors, "a": torch.full((2, 2), float("nan"))}, 1e-6)
    with pytest.raises(GateError, match="metric 'f1'"):
        compare_metrics({"f1": 0.5}, {"f1": float("nan")}, 1e-4, rows=20)


def test_only_a_b_begins_as_zero():
    demand_learned({"ia3_l": torch.zeros(3)})
    demand_learned({"0.lora_B.weight": torch.zeros(3), "1.lora_B.weight": torch.ones(3)})
    for name in ("lora_B.weight", "lora_embedding_B"):
        with pytest.raises(GateError, match="every lora_B is zero"):
            demand_learned({name: torch.zeros(3), "lora_A.weight": torch.ones(3)})


def test_metrics_of_an_order_may_differ_by_a_near_tie():
    compare_metrics({"mrr@10": 0.5, "auc": 0.5}, {"mrr@10": 0.56, "auc": 0.6}, 1e-4, rows=10)
    with pytest.raises(GateError, match="metric 'mrr@10'"):
        compare_metrics({"mrr@10": 0.5}, {"mrr@10": 0.3}, 1e-4, rows=10)
    with pytest.raises(GateError, match="metric 'f1'"):
        compare_metrics({"f1": 0.5}, {"f1": 0.51}, 1e-4, rows=10)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision_one_row_of_few_may_fall_otherwise(dtype):
    """Two rounded logits that are nearly alike: with four rows that is a quarter of the accuracy."""
    tolerance = METRIC_TOLERANCE[dtype]
    trained, loaded = {"accuracy": 0.5, "f1": 0.3333, "mcc": 0.0}, {"accuracy": 0.75, "f1": 0.7333, "mcc": 0.5774}
    compare_metrics(trained, loaded, tolerance, rows=4)
    for rows, allowed in ((64, tolerance), (4, METRIC_TOLERANCE["float32"])):
        with pytest.raises(GateError, match="accuracy"):
            compare_metrics(trained, loaded, allowed, rows=rows)
