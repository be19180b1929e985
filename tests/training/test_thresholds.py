"""From which score on a row has a label, where it may have several: found on validation rows, kept, and read again."""

from __future__ import annotations

import json
import random
import tracemalloc

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.metrics import f1_score
from sklearn.model_selection import TunedThresholdClassifierCV

from lorary.adapters import Backbone
from lorary.hub.checkpoint import MANIFEST_NAME, read_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.errors import DataError, GateError, RecipeError
from lorary.training import train
from lorary.training.data import load_data
from lorary.training.one_run import check, run, save_run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.tasks import make_task
from lorary.training.tasks.heads.thresholds import tune_thresholds
from lorary.training.tasks.multi_label import MultiLabelClassification
from samples import WORDS, write_jsonl

MULTI = "multi_label_classification"


def rare_rows(count: int, seed: int = 0) -> list[dict]:
    """Headlines with a label for each of two words in them; every other `bank` lacks its own, so it stays unlikely."""
    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        words = random_.choices(WORDS[:12], k=4)
        labels = [
            label for label, kept in (("profit", 1.0), ("debt", 0.4)) if label in words and random_.random() < kept
        ]
        rows.append({"text": " ".join(words), "label": labels})
    return rows


@pytest.fixture
def rare(make_small, tmp_path):
    """A recipe for such rows, with rows to find thresholds on."""

    def make(**settings):
        files = {
            "data.train": write_jsonl(tmp_path / "rare-train.jsonl", rare_rows(80)),
            "data.test": write_jsonl(tmp_path / "rare-test.jsonl", rare_rows(40, seed=1)),
            "data.validation": write_jsonl(tmp_path / "rare-validation.jsonl", rare_rows(80, seed=2)),
        }
        return make_small(**{**files, "training.epochs": 2, "training.early_stopping": 2, **settings})

    return make


class _Scores(ClassifierMixin, BaseEstimator):
    """A classifier whose probabilities are its input's."""

    def fit(self, x, y):
        self.classes_ = np.array([0, 1])
        return self

    def predict_proba(self, x):
        return np.stack([1 - x[:, 0], x[:, 0]], axis=1)


def test_a_label_that_many_rows_have_gets_scikit_learns_threshold():
    random_ = np.random.default_rng(0)
    truth = random_.random((2000, 1)) < 0.3
    scores = np.clip(random_.normal(0.12 + 0.15 * truth, 0.08), 0.001, 0.999)
    (own,) = tune_thresholds(scores, truth)
    theirs = TunedThresholdClassifierCV(
        _Scores().fit(scores, truth[:, 0]), scoring="f1", cv="prefit", refit=False, thresholds=200
    ).fit(scores, truth[:, 0])
    best = f1_score(truth[:, 0], theirs.predict(scores))
    assert own == pytest.approx(theirs.best_threshold_, abs=0.02)
    assert f1_score(truth[:, 0], scores[:, 0] >= own) == pytest.approx(best, abs=0.003)
    assert best > f1_score(truth[:, 0], scores[:, 0] >= 0.5) + 0.3


def test_a_label_that_few_rows_have_is_drawn_towards_the_others():
    random_ = np.random.default_rng(1)
    truth = np.zeros((400, 3), dtype=bool)
    truth[:200, 0], truth[:2, 1] = True, True
    scores = np.where(truth, 0.3, 0.2) + random_.uniform(0, 0.09, truth.shape)
    scores[:, 1] = np.where(truth[:, 1], 0.05, 0.04)  # by itself, 0.045 would be best
    often, seldom, never = tune_thresholds(scores, truth)
    assert 0.29 < often < 0.31
    assert 0.29 < never < 0.32  # what is best for all, since no row says otherwise
    assert 0.045 < seldom < never
    odds = np.log([value / (1 - value) for value in (0.045, seldom, never)])
    assert (odds[2] - odds[1]) / (odds[2] - odds[0]) == pytest.approx(2 / 12, abs=0.01)


def test_rows_with_equal_scores_have_a_label_together_or_not_at_all():
    groups = [(0.9, True, 1000), (0.9, False, 1000), (0.5, False, 1000), (0.4, True, 800)]
    scores = np.concatenate([np.full(count, score) for score, _, count in groups])[:, None]
    truth = np.concatenate([np.full(count, has) for _, has, count in groups])[:, None]
    (least,) = tune_thresholds(scores, truth)  # the first thousand alone would be better than all
    assert least < 0.4


def test_of_thresholds_that_are_as_good_for_all_labels_it_is_the_nearest_to_one_half():
    truth = np.zeros((2000, 2), dtype=bool)
    truth[::2, 0] = True
    _, never = tune_thresholds(np.where(truth, 0.95, 0.1), truth)
    assert never == pytest.approx(0.5, abs=0.01)


def test_a_row_has_a_label_from_its_threshold_on(make_small):
    task = make_task(make_small(**{"training.threshold": {"b": 0.25}}), ("a", "b", "c"), MULTI)
    assert task.decided((0.5, 0.25, 0.49)).labels == ("a", "b")


def test_many_labels_and_rows_take_little_memory():
    random_ = np.random.default_rng(2)
    truth = random_.random((1000, 300)) < 0.02
    scores = np.clip(random_.normal(0.1 + 0.2 * truth, 0.1), 0.001, 0.999)
    tracemalloc.start()
    found = tune_thresholds(scores, truth)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 300
    assert 0.1 < min(found) < max(found) < 0.5
    assert peak < 8 * scores.nbytes


def test_without_a_label_in_sight_a_row_has_one_from_one_half_on():
    assert tune_thresholds(np.full((6, 2), 0.1), np.zeros((6, 2), dtype=bool)) == (0.5, 0.5)
    assert tune_thresholds(np.array([[0.2], [0.2], [0.2]]), np.array([[True], [False], [True]]))[0] < 0.5


def test_thresholds_are_found_on_validation_rows_and_read_by_predict(rare, registry, tmp_path, capsys):
    version = train(rare(), registry)
    profit, debt = version.manifest.thresholds
    assert version.manifest.labels == ("debt", "profit")
    told = version.manifest.provenance["thresholds"]
    assert (told["rows"], told["metric"]) == (80, "f1")
    assert told["tuned"] >= told["at_half"]
    assert any(
        "from these scores on, found on 80 rows that weren't trained on: debt" in n
        for n in version.manifest.provenance["notices"]
    )
    # The metrics are those of the labels that `predict` reads.
    backbone = Backbone.from_pretrained(version.base_id, device="cpu", registry=registry)
    backbone.load("tiny")
    texts, golds = zip(*((row["text"], row["label"]) for row in rare_rows(40, seed=1)), strict=True)
    read = backbone.predict(list(texts), "tiny", threshold="own")
    scored = backbone.predict(list(texts), "tiny", top_k=None)
    least = {"debt": profit, "profit": debt}
    assert [{one["label"] for one in answer} for answer in read] == [
        {one["label"] for one in answer if one["score"] >= least[one["label"]]} for answer in scored
    ]
    truth, found = (
        [[label in row for label in ("debt", "profit")] for row in rows]
        for rows in (golds, [[one["label"] for one in answer] for answer in read])
    )
    assert version.metrics["test"]["f1"] == pytest.approx(f1_score(truth, found, average="macro"))
    assert main(["run", "tiny", *texts[:8], "--json", "--registry", str(registry.path)]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [{one["label"] for one in row["output"]} for row in rows] == [{o["label"] for o in a} for a in read[:8]]


def test_a_recipe_may_give_thresholds_or_one_half(rare, registry):
    half = train(rare(**{"training.threshold": 0.5, "training.max_steps": 1}), registry)
    assert half.manifest.thresholds is None
    assert "thresholds" not in half.manifest.provenance
    table = {
        "training.threshold": {"debt": 0.2},
        "training.max_steps": 1,
        "output": str(registry.path.parent / "given"),
    }
    given = train(rare(**table), registry)
    assert (given.manifest.problem_type, given.manifest.thresholds) == (MULTI, (0.2, 0.5))
    assert given.digest != half.digest


def test_the_gate_reads_the_saved_thresholds(rare, registry, tmp_path):
    recipe = rare(**{"training.max_steps": 1})
    finished = run(prepare(recipe, load_data(recipe), Reporter()), tmp_path / "checkpoints", Reporter())
    save_run(finished, tmp_path / "files")
    path = tmp_path / "files" / MANIFEST_NAME
    before, saved = read_checkpoint(tmp_path / "files").digest, json.loads(path.read_text())
    assert saved["format"] == 4
    path.write_text(json.dumps({**saved, "thresholds": [0.999, 0.999]}))
    assert read_checkpoint(tmp_path / "files").digest != before
    with pytest.raises(GateError, match="metric"):
        check(finished, tmp_path / "files", registry)


def test_folds_give_the_last_run_their_median(rare, registry):
    version = train(
        rare(**{
            "data.test": None, "data.validation": None, "training.folds": 2, "training.max_steps": 1,
            "data.validation_size": 0.2,
        }),
        registry,
    )  # fmt: skip
    recipe = version.manifest.provenance["recipe"]["training"]
    assert recipe["threshold"] == dict(zip(("debt", "profit"), version.manifest.thresholds, strict=True))
    assert recipe["early_stopping"] == 0


def test_folds_without_validation_rows_find_them_on_all_that_they_held_out(rare, registry):
    version = train(
        rare(**{"data.test": None, "data.validation": None, "training.folds": 2, "training.max_steps": 6}), registry
    )
    recipe = version.manifest.provenance["recipe"]["training"]
    assert recipe["threshold"] == dict(zip(("debt", "profit"), version.manifest.thresholds, strict=True))
    assert min(version.manifest.thresholds) < 0.5
    assert registry.verify() == []
    # Nothing of a setting that the user hasn't made.
    assert not any("early_stopping" in line for line in version.manifest.provenance["notices"])


def test_each_seeds_validation_rows_are_answered_once(rare, registry, monkeypatch):
    asked, outcomes = [], MultiLabelClassification.outcomes

    def count(task, model, rows, *arguments, **settings):
        asked.append(len(rows.examples))
        return outcomes(task, model, rows, *arguments, **settings)

    monkeypatch.setattr(MultiLabelClassification, "outcomes", count)
    monkeypatch.setattr(MultiLabelClassification, "scored_in_one_pass", False)  # nor while it trains
    version = train(rare(**{"training.seeds": 2, "training.epochs": 1}), registry)
    assert asked.count(80) == 2
    told = version.manifest.provenance["seeds"]
    best = told["validation"][told["seeds"].index(told["kept"])]
    assert best == version.manifest.provenance["thresholds"]["tuned"] == max(told["validation"])


@pytest.mark.parametrize(
    ("stopping", "how"),
    [
        (3, "a data.validation_size that makes 8 rows takes them from the training rows"),
        (0, "none are split off where training.early_stopping is 0"),
    ],
)
def test_without_validation_rows_the_user_hears_how_to_have_some(stopping, how, make_recipe):
    lines = []
    task = make_task(make_recipe(**{"training.early_stopping": stopping}), ("a", "b"), MULTI)
    assert task.decide([], (), lines.append) == []
    assert lines == [f"a row has a label from 0.5 on: no validation rows to find better thresholds on; {how}"]


def test_of_many_labels_a_few_thresholds_are_told(make_recipe):
    lines = []
    labels = tuple(f"label-{number}" for number in range(500))
    task = make_task(make_recipe(), labels, MULTI)
    scores = np.random.default_rng(0).random((20, 500))
    settled = task.decide([task.decided(tuple(row)) for row in scores], [labels[:9]] * 20, lines.append)
    assert settled == [task.decided(tuple(row)) for row in scores]
    assert "label-11 0." in lines[0]
    assert "and 488 more (f1 there" in lines[0]
    assert "label-12" not in lines[0]


def test_few_rows_leave_it_at_one_half(make_small, registry, tmp_path):
    path = write_jsonl(tmp_path / "few.jsonl", rare_rows(40))
    settings = {"data.train": path, "data.test": None, "training.early_stopping": 3, "training.max_steps": 1}
    version = train(make_small(**settings), registry)
    assert version.manifest.thresholds is None
    assert any("no validation rows to find better thresholds" in n for n in version.manifest.provenance["notices"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem_type": "regression"}, "threshold: only rows with several labels"),
        ({"task": "token-classification"}, "threshold: only text-classification with several labels"),
        ({"training.early_stopping": 0}, "threshold: 'tuned' needs validation rows"),
        ({"data.validation_size": 0}, "threshold: 'tuned' needs validation rows, and data.validation_size: 0"),
        ({"strategy": "direct"}, "threshold: strategy 'direct' trains nothing"),
        ({"training.threshold": {}}, "threshold: the table is empty"),
        ({"training.threshold": 1.5}, "threshold: "),
        ({"training.threshold": "best"}, "threshold: "),
    ],
)
def test_thresholds_where_there_can_be_none(settings, message, make_recipe):
    task = settings.pop("task", "text-classification")
    with pytest.raises(RecipeError, match=rf"training\.{message}"):
        make_recipe(task, **{"training.early_stopping": 3, "training.threshold": "tuned", **settings})


def test_thresholds_that_the_rows_contradict(make_recipe, rare):
    with pytest.raises(DataError, match="threshold: only rows with several labels have one; the rows are single_label"):
        load_data(make_recipe(**{"training.threshold": 0.3}))
    with pytest.raises(DataError, match=r"threshold: unknown label 'dept'; there are debt, profit.*'debt'"):
        load_data(rare(**{"training.threshold": {"dept": 0.3}}))
