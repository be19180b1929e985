"""Class weights, label smoothing and the head's dropout: torch's own losses, whatever the batches of a step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import DataError, RecipeError, TrainingError
from lorary.hub.tensorfile import read_header
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.fitting.evaluate import row_logits
from lorary.training.fitting.losses import IGNORED, BinaryCrossEntropy, CrossEntropy
from lorary.training.model import load_for
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.tasks import make_task
from lorary.training.tasks.heads.weights import class_weights, positive_weights
from samples import tone_rows, write_jsonl

CLASSIFY, TAG = "text-classification", "token-classification"


@pytest.fixture
def uneven(tmp_path):
    """Settings with a file in which three of four rows are bad."""
    rows = tone_rows(64)
    path = write_jsonl(tmp_path / "uneven.jsonl", [row for place, row in enumerate(rows) if place % 6 not in (1, 3)])
    return {"data.train": path, "training.class_weights": "balanced", "training.label_smoothing": 0.1}


def test_balanced_is_scikit_learns():
    golds = list("aaaaaabbc")
    counts = [golds.count(label) for label in "abc"]
    expected = compute_class_weight("balanced", classes=np.array(list("abc")), y=golds)
    assert class_weights("balanced", "abc", counts) == pytest.approx(tuple(expected))
    assert class_weights("balanced", ("a", "b", "none"), [3, 1, 0]) == pytest.approx((4 / 6, 2.0, 1.0))
    assert class_weights({"b": 5}, "abc", counts) == (1.0, 5.0, 1.0)
    assert positive_weights("balanced", ("a", "b", "all", "none"), [2, 5, 10, 0], 10) == (4.0, 1.0, 1.0, 1.0)
    assert class_weights(None, "abc", counts) is None


@pytest.mark.parametrize("weight", [None, (0.2, 1.0, 3.0)])
@pytest.mark.parametrize("shape", [(7,), (4, 5)])
def test_cross_entropy_is_torchs_whole_and_in_parts(weight, shape):
    torch.manual_seed(0)
    logits, labels = torch.randn(*shape, 3), torch.randint(0, 3, shape)
    labels.view(-1)[2] = IGNORED
    loss = CrossEntropy(weight, 0.1)
    expected = functional.cross_entropy(
        logits.flatten(0, -2), labels.flatten(), weight=torch.tensor(weight) if weight else None, label_smoothing=0.1
    )
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    parts = [(logits[:3], labels[:3]), (logits[3:], labels[3:])]
    total = sum(loss.share(labels) for _, labels in parts)
    means = [loss({"logits": part}, labels) * loss.share(labels) / total for part, labels in parts]
    torch.testing.assert_close(sum(means), expected)


def test_binary_cross_entropy_is_torchs_whole_and_in_parts():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.randint(0, 2, (6, 3)).float()
    loss = BinaryCrossEntropy((0.5, 2.0, 9.0))
    expected = functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=torch.tensor([0.5, 2.0, 9.0]))
    torch.testing.assert_close(loss({"logits": logits}, labels), expected)
    parts = [(logits[:2], labels[:2]), (logits[2:], labels[2:])]
    total = sum(loss.share(labels) for _, labels in parts)
    means = [loss({"logits": part}, labels) * loss.share(labels) / total for part, labels in parts]
    torch.testing.assert_close(sum(means), expected)


def test_a_runs_loss_is_torchs_with_these_weights(uneven, make_recipe, registry):
    """On a Llama, which has no dropout: the first step's loss is that of the untrained model on all rows."""
    recipe = make_recipe(CLASSIFY, "llama", **uneven, **{"training.batch_size": 64, "training.max_steps": 2})
    prepared = prepare(recipe, load_data(recipe), Reporter())
    features = list(prepared.train.features)
    logits = torch.stack(row_logits(prepared.model, prepared.task.collator(prepared.base.tokenizer), features))
    labels = torch.tensor([feature["labels"] for feature in features])
    counts = labels.bincount()
    expected = functional.cross_entropy(logits, labels, weight=len(labels) / (2 * counts.float()), label_smoothing=0.1)
    assert counts[0] > 1.5 * counts[1]
    curve = dict(train(recipe, registry).manifest.provenance["curve"])
    assert curve[1] == pytest.approx(float(expected), rel=1e-4)
    assert curve[1] != pytest.approx(float(functional.cross_entropy(logits, labels)), rel=1e-3)


@pytest.mark.parametrize("task", [CLASSIFY, TAG])
def test_a_step_of_several_batches_is_one_of_a_large_batch(task, make_recipe, registry, tmp_path):
    """With weights a mean of means is another number, since rare labels fall into some batches and not others."""
    weights = {"good": 9} if task == CLASSIFY else {"B-ORG": 9}
    settings = {"training.class_weights": weights, "training.max_steps": 3, "lora.dropout": 0.0, "rows": 32}
    if task == TAG:
        settings["training.classifier_dropout"] = 0.0
    recipes = {
        name: make_recipe(
            task, "llama", **settings,
            **{"training.batch_size": batch, "training.gradient_accumulation": 16 // batch},
            output=str(tmp_path / name),
        )
        for name, batch in (("one", 16), ("many", 4))
    }  # fmt: skip
    curves = {name: train(recipe, registry).manifest.provenance["curve"] for name, recipe in recipes.items()}
    assert curves["many"] == [[step, pytest.approx(loss, rel=1e-4)] for step, loss in curves["one"]]
    one, many = (load(tmp_path / name) for name in ("one", "many"))
    for key, tensor in one.items():
        torch.testing.assert_close(many[key], tensor, rtol=1e-3, atol=1e-4)


def load(folder):
    from safetensors.torch import load_file

    assert read_header(folder / "adapter_model.safetensors")
    return load_file(read_checkpoint(folder).files["adapter_model.safetensors"])


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        (["a", "b"], {"training.class_weights": {"aa": 2.0}}, "class_weights: unknown label 'aa'; there are a, b"),
        ([0.5, 1.5], {"training.class_weights": "balanced"}, r"the labels are numbers \(regression\), which have no"),
        ([0.5, 1.5], {"training.label_smoothing": 0.1}, "only one label of several can be smoothed"),
        ([["a"], ["b"]], {"training.label_smoothing": 0.1}, "only one label of several can be smoothed"),
    ],
)
def test_settings_that_the_labels_have_no_use_for_are_named(labels, settings, message, make_recipe, tmp_path):
    path = write_jsonl(tmp_path / "l.jsonl", [{"text": f"t{n}", "label": labels[n % 2]} for n in range(10)])
    with pytest.raises(DataError, match=message):
        load_data(make_recipe(**{"data.train": path, "data.test": None, **settings}))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "text-generation", "training.class_weights": "balanced"}, "only text-classification and token-cl"),
        ({"task": "text-generation", "training.classifier_dropout": 0.2}, "only text-classification and token-class"),
        ({"task": "text-generation", "training.label_smoothing": 0.1}, "training.label_smoothing: only the loss of"),
        ({"problem_type": "regression", "training.class_weights": "balanced"}, "regression has no classes"),
        ({"problem_type": "multi_label_classification", "training.label_smoothing": 0.1}, "only one label of several"),
        ({"training.class_weights": "blanced"}, "class_weights: expected balanced or keys and values below it, found"),
        ({"training.class_weights": {"a": 0}}, "training.class_weights"),
        ({"training.class_weights": {}}, "training.class_weights: the table is empty"),
        ({"training.label_smoothing": 1.0}, "training.label_smoothing: expected a number below 1"),
    ],
)
def test_contradictions_are_named(settings, message, make_recipe):
    task = settings.pop("task", CLASSIFY)
    with pytest.raises(RecipeError, match=message):
        make_recipe(task, **settings)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
@pytest.mark.parametrize("task", [CLASSIFY, TAG])
def test_the_heads_dropout_is_set_and_the_bodys_is_not(task, family, make_recipe):
    recipe = make_recipe(task, family, **{"training.classifier_dropout": 0.37})
    base = load_for(make_task(recipe, ("O", "B-ORG")), recipe)
    shares = {name: part.p for name, part in base.model.named_modules() if isinstance(part, torch.nn.Dropout)}
    body = base.model.base_model_prefix
    assert {share for name, share in shares.items() if not name.startswith(body)} == {0.37}
    assert 0.37 not in {share for name, share in shares.items() if name.startswith(body)}


def test_a_head_without_a_dropout_is_named(make_recipe):
    recipe = make_recipe(CLASSIFY, "llama", **{"training.classifier_dropout": 0.2})
    with pytest.raises(TrainingError, match="LlamaForSequenceClassification has no dropout in its head"):
        load_for(make_task(recipe, ("a", "b")), recipe)


def test_classifiers_decay_and_generation_does_not(make_recipe):
    assert make_recipe(CLASSIFY).training.weight_decay == make_recipe(TAG).training.weight_decay == 0.01
    assert make_recipe("text-generation").training.weight_decay == 0.0
