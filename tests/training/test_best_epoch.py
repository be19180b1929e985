"""Which epoch is kept: the best one on the validation rows, by the loss or by the task's metric."""

from __future__ import annotations

import json

import pytest

from lorary.hub.errors import RecipeError
from lorary.hub.metrics import lower_is_better
from lorary.training.data import load_data
from lorary.training.one_run import run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from samples import write_jsonl

# A step size that makes epochs go up and down, and few enough rows for some to be equal.
RESTLESS = {
    "training.early_stopping": 12, "training.epochs": 8, "training.learning_rate": 0.05, "data.validation_size": 0.2,
}  # fmt: skip


def numbers(tmp_path, count, seed=0):
    rows = [{"text": f"{word} gain", "label": 1.5 * place + seed} for place, word in enumerate(("low", "fair", "high"))]
    return write_jsonl(tmp_path / f"numbers-{seed}.jsonl", rows * (count // 3))


def run_by(recipe, tmp_path):
    """The run, and what its log says of each epoch: loss, metric, epoch."""
    prepared = prepare(recipe, load_data(recipe), Reporter())
    finished = run(prepared, tmp_path / f"checkpoints-{recipe.training.best_by}", Reporter())
    states = (tmp_path / f"checkpoints-{recipe.training.best_by}").glob("checkpoint-*/trainer_state.json")
    history = json.loads(max(states, key=lambda path: path.stat().st_mtime).read_text())["log_history"]
    return finished, [entry for entry in history if "eval_loss" in entry]


def check_kept(finished, epochs):
    """The epoch with the best metric is kept, and of equal ones that with the least loss; the model is that epoch's."""
    ready = finished.prepared
    sign = 1 if lower_is_better(ready.task.main_metric) else -1
    best = min(epochs, key=lambda entry: (sign * entry["eval_metric"], entry["eval_loss"]))
    assert finished.best_epoch == best["epoch"]
    rows = ready.validation
    found = ready.task.outcomes(ready.model, rows, ready.base.tokenizer, 16)
    assert ready.task.main_score(found, rows.golds) == pytest.approx(best["eval_metric"], rel=1e-5)


@pytest.mark.parametrize("kind", ["tags", "numbers"])
def test_the_epoch_with_the_best_metric_is_kept(kind, make_recipe, tmp_path):
    settings = {**RESTLESS, "training.epochs": 4, "training.best_by": "metric"}
    if kind == "numbers":
        settings |= {"data.train": numbers(tmp_path, 90), "data.test": numbers(tmp_path, 12, seed=1)}
    task = "token-classification" if kind == "tags" else "text-classification"
    check_kept(*run_by(make_recipe(task, rows=60, **settings), tmp_path))


def test_metric_and_loss_may_choose_different_epochs(make_recipe, tmp_path):
    for seed in range(42, 47):  # with another processor's rounding they may agree on one of these
        settings = {"rows": 100, "layers": 2, **RESTLESS, "training.seed": seed}
        by_loss, epochs = run_by(make_recipe(**settings), tmp_path / f"{seed}")
        by_metric, same = run_by(make_recipe(**settings, **{"training.best_by": "metric"}), tmp_path / f"{seed}")
        assert [entry["eval_loss"] for entry in epochs] == [entry["eval_loss"] for entry in same]
        assert by_loss.best_epoch == min(epochs, key=lambda entry: entry["eval_loss"])["epoch"]
        check_kept(by_metric, same)
        if by_loss.best_epoch != by_metric.best_epoch:
            return
    pytest.fail("metric and loss chose the same epoch with each seed")


@pytest.mark.parametrize(
    ("task", "settings", "said"),
    [
        ("fill-mask", {}, "epochs of fill-mask are judged by their loss alone"),
        ("summarization", {}, "epochs of summarization are judged by their loss alone"),
        ("text-generation", {}, "epochs of text-generation are judged by their loss alone"),
        ("text-classification", {"training.early_stopping": 0}, "training.early_stopping: 0 leaves none"),
        ("text-classification", {"data.validation_size": 0}, "data.validation_size: 0 leaves none"),
        ("text-classification", {"strategy": "direct"}, "trains nothing, so no epoch is kept"),
        (
            "text-classification",
            {"training.best_by": "f1"},
            "training.best_by: expected one of loss, metric, found .f1.",
        ),
    ],
)
def test_a_metric_that_cannot_choose_is_refused(task, settings, said, make_recipe):
    with pytest.raises(RecipeError, match=said.replace("(", r"\(")):
        make_recipe(task, **{"training.early_stopping": 2, "training.best_by": "metric", **settings})


def test_preference_pairs_have_a_metric_beside_their_loss(make_recipe, tmp_path):
    rows = [{"prompt": f"q{n}", "chosen": "yes", "rejected": "no"} for n in range(40)]
    pairs = {"data.train": write_jsonl(tmp_path / "pairs.jsonl", rows), "data.test": None, "lora.dropout": 0.0}
    settings = {"training.early_stopping": 2, "training.best_by": "metric"}
    columns = {"data.columns": {key: key for key in rows[0]}}
    assert make_recipe("text-generation", **pairs, **columns, **settings).training.best_by == "metric"
