"""Text classification of every kind: one label, several, a number; held against scikit-learn and scipy."""

from __future__ import annotations

import random

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
import torch

from lorary.adapters import Backbone
from lorary.hub.errors import DataError, RecipeError, UsageError
from lorary.training import train
from lorary.training.data import Example, load_data
from lorary.training.tasks import Encoded, make_task
from samples import tone_rows, write_jsonl

SINGLE, MULTI, REGRESSION = "single_label_classification", "multi_label_classification", "regression"


def several_rows(count: int, seed: int = 0) -> list[dict]:
    """Headlines with a label for each of three words in them, which half of them have."""
    random_ = random.Random(seed)
    rows = []
    for _ in range(count):
        labels = [word for word in ("bank", "profit", "the") if random_.random() < 0.5]
        words = random_.sample([*labels, random_.choice(["sales", "rose", "today"])], k=len(labels) + 1)
        rows.append({"text": " ".join(words), "label": labels})
    return rows


def number_rows(count: int, seed: int = 0) -> list[dict]:
    """Headlines whose number is how often they say `profit`, and a half."""
    random_ = random.Random(seed)
    texts = [random_.choices(["profit", "sales", "bank", "today"], k=6) for _ in range(count)]
    return [{"text": " ".join(words), "label": words.count("profit") + 0.5} for words in texts]


@pytest.fixture
def of_rows(make_recipe, tmp_path):
    """A recipe for these rows, the last fifth of them held out."""

    def make(rows, **settings):
        cut = len(rows) * 4 // 5
        files = {
            "data.train": write_jsonl(tmp_path / "labelled.jsonl", rows[:cut]),
            "data.test": write_jsonl(tmp_path / "held.jsonl", rows[cut:]),
        }
        return make_recipe(**files, **settings)

    return make


def load(recipe):
    notes: list[str] = []
    return load_data(recipe, notes.append), notes


# The metrics


def test_metrics_of_one_label_are_scikit_learns(make_recipe):
    labels, random_ = ("a", "b", "c"), np.random.default_rng(0)
    scores = random_.dirichlet([1, 1, 1], size=40)
    golds = [labels[index] for index in random_.integers(0, 3, size=40)]
    found = [labels[index] for index in scores.argmax(1)]
    assert make_task(make_recipe(), labels, SINGLE).metrics([tuple(row) for row in scores], golds) == pytest.approx({
        "accuracy": sk.accuracy_score(golds, found),
        "f1": sk.f1_score(golds, found, average="macro"),
        "f1_micro": sk.f1_score(golds, found, average="micro"),
        "precision": sk.precision_score(golds, found, average="macro"),
        "recall": sk.recall_score(golds, found, average="macro"),
        "mcc": sk.matthews_corrcoef(golds, found),
        "auc": sk.roc_auc_score(golds, scores, multi_class="ovr", labels=labels),
    })  # fmt: skip


def test_auc_of_two_labels_is_the_one_curves_and_is_left_out_where_it_is_undefined(make_recipe):
    task = make_task(make_recipe(), ("bad", "good"))
    scores = [(0.9, 0.1), (0.4, 0.6), (0.6, 0.4), (0.2, 0.8)]
    golds = ["bad", "good", "good", "bad"]
    assert task.metrics(scores, golds)["auc"] == pytest.approx(sk.roc_auc_score([0, 1, 1, 0], [0.1, 0.6, 0.4, 0.8]))
    assert task.caveats(golds) == []
    assert "auc" not in task.metrics(scores, ["bad"] * 4)
    assert task.caveats(["bad"] * 4) == ["no auc: none of the held-out rows has the label 'good'"]


def test_metrics_of_several_labels_are_scikit_learns(make_recipe):
    labels, random_ = ("a", "b", "c"), np.random.default_rng(1)
    scores, truth = random_.random((40, 3)), random_.random((40, 3)) > 0.6
    golds = [[label for label, there in zip(labels, row, strict=True) if there] for row in truth]
    found = scores >= 0.5
    task = make_task(make_recipe(), labels, MULTI)
    assert task.metrics([task.decided(tuple(row)) for row in scores], golds) == pytest.approx({
        "accuracy": sk.accuracy_score(truth, found),
        "f1": sk.f1_score(truth, found, average="macro"),
        "f1_micro": sk.f1_score(truth, found, average="micro"),
        "f1_samples": sk.f1_score(truth, found, average="samples", zero_division=0),
        "precision": sk.precision_score(truth, found, average="macro"),
        "recall": sk.recall_score(truth, found, average="macro"),
        "auc": sk.roc_auc_score(truth, scores, average="macro"),
    })  # fmt: skip
    assert task.caveats([["a"], ["a", "b"]]) == ["no auc: each of the held-out rows has the label 'a'"]


def test_metrics_of_numbers_are_scipys_and_scikit_learns(make_recipe):
    random_ = np.random.default_rng(2)
    golds, found = random_.normal(size=30).tolist(), random_.normal(size=30).tolist()
    task = make_task(make_recipe(), ("score",), REGRESSION)
    assert task.metrics(found, golds) == pytest.approx({
        "pearson": scipy.stats.pearsonr(golds, found).statistic,
        "spearman": scipy.stats.spearmanr(golds, found).statistic,
        "mse": sk.mean_squared_error(golds, found),
        "rmse": sk.root_mean_squared_error(golds, found),
        "mae": sk.mean_absolute_error(golds, found),
    })  # fmt: skip
    assert task.metrics([2.0, 2.0], [1.0, 3.0])["pearson"] == 0.0
    assert "pearson" not in task.metrics([1.0, 2.0], [3.0, 3.0])
    assert task.caveats([3.0, 3.0]) == ["no correlation: the held-out rows all have the same number"]


def test_baselines_are_those_of_the_training_rows(make_recipe):
    def examples(*labels):
        return [Example({"label": label}, "") for label in labels]

    recipe = make_recipe()
    assert make_task(recipe, ("a", "b")).majority(examples(*"aab"), list("bbba"))["accuracy"] == 0.25
    several = make_task(recipe, ("a", "b"), MULTI).majority(examples(["a"], ["a"], []), [["a"], ["a", "b"]])
    assert (several["accuracy"], several["recall"]) == (0.5, 0.5)
    test = Encoded((), (), (3.0, 5.0))
    number = make_task(recipe, ("x",), REGRESSION).baselines(examples(1.0, 2.0, 6.0), test, test, None)
    assert number["mean"] == {"pearson": 0.0, "spearman": 0.0, "rmse": 2.0**0.5, "mse": 2.0, "mae": 1.0}


# What the labels are


@pytest.mark.parametrize(
    ("labels", "problem", "names"),
    [
        (["a", "b", "a", "b", "a"], SINGLE, ("a", "b")),
        ([0, 1, 2, 1, 0], SINGLE, ("0", "1", "2")),
        ([0.5, 1, 2.25, 1, 3], REGRESSION, ("label",)),
        ([["a"], [], ["b", "a", "b"], ["a"], ["b"]], MULTI, ("a", "b")),
        ([[1, 0], [0, 0], [1, 1], [0, 1], [1, 0]], MULTI, ("0", "1")),
        ([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], MULTI, ("0", "1")),
    ],
)
def test_the_rows_labels_tell_the_problem(labels, problem, names, of_rows):
    data, notes = load(of_rows([{"text": f"t{place}", "label": label} for place, label in enumerate(labels)] * 2))
    assert (data.problem_type, data.labels) == (problem, names)
    assert len(notes) == (problem != SINGLE) + 1  # and the rows that are held out twice
    if problem == MULTI:
        assert all(set(example.values["label"]) <= set(names) for example in data.train)


def test_many_whole_numbers_may_be_amounts(of_rows):
    def notes_of(count, **settings):
        rows = [{"text": f"t{place}", "label": place % count} for place in range(2 * count + 2)]
        return [line for line in load(of_rows(rows, **settings))[1] if "amounts" in line]

    told = "the labels are 30 whole numbers: classes; if they are amounts, set problem_type to regression"
    assert notes_of(30) == [told]
    assert notes_of(20) == notes_of(30, problem_type=SINGLE) == []


def test_lists_of_numbers_are_named_by_the_listed_labels(of_rows):
    numbers = [{"text": f"t{place}", "label": label} for place, label in enumerate([[2, 0], [1], [], [2], [0]])]
    places = [
        {"text": f"t{place}", "label": label}
        for place, label in enumerate([[1, 0, 1], [0, 1, 0], [0, 0, 0], [0, 0, 1], [1, 0, 0]])
    ]
    for rows in (numbers, places):
        data, _ = load(of_rows(rows, **{"data.labels": ("x", "y", "z")}))
        assert [example.values["label"] for example in data.train] == [["x", "z"], ["y"], [], ["z"]]


def test_columns_of_0_and_1_are_labels(make_recipe, tmp_path):
    (tmp_path / "marks.csv").write_text("body,rude,loud\na,1,0\nb,0,0\nc,1,1.0\nd,0.0,TRUE\ne,0,1\n")
    settings = {
        "data.train": str(tmp_path / "marks.csv"), "data.test": None, "data.columns": {"text": "body"},
        "data.label_columns": ("rude", "loud"),
    }  # fmt: skip
    data, _ = load(make_recipe(**settings))
    found = {example.values["text"]: example.values["label"] for example in (*data.train, *data.test)}
    assert found == {"a": ["rude"], "b": [], "c": ["rude", "loud"], "d": ["loud"], "e": ["loud"]}
    assert (data.labels, data.problem_type) == (("rude", "loud"), MULTI)
    (tmp_path / "marks.csv").write_text("body,rude,loud\na,1,2\nb,,0\n")
    with pytest.raises(DataError, match=r"row 2, loud: expected 0 or 1, found '2'\n.*row 3, rude: expected 0 or 1"):
        load(make_recipe(**settings))
    with pytest.raises(DataError, match=r"no column 'rud' \(of data.label_columns\).*did you mean 'rude'"):
        load(make_recipe(**{**settings, "data.label_columns": ("rud", "loud")}))


def test_a_text_may_hold_several_labels(make_recipe, tmp_path):
    (tmp_path / "films.csv").write_text("text,label\na,sci-fi| drama\nb,drama\nc,\nd,drama|sci-fi|\ne,war\n")
    settings = {"data.train": str(tmp_path / "films.csv"), "data.test": None}
    data, notes = load(make_recipe(**settings, **{"data.label_separator": "|"}))
    found = {example.values["text"]: example.values["label"] for example in (*data.train, *data.test)}
    assert found == {"a": ["drama", "sci-fi"], "b": ["drama"], "c": [], "d": ["drama", "sci-fi"], "e": ["war"]}
    assert (data.labels, data.problem_type) == (("drama", "sci-fi", "war"), MULTI)
    assert not any("label_separator" in line for line in notes)


def test_numbers_of_labels_may_stand_in_a_text(of_rows):
    rows = [{"text": f"t{place}", "label": label} for place, label in enumerate(["0,2", 1, "2", "1,0", ""])]
    data, _ = load(of_rows(rows, **{"data.label_separator": ",", "data.labels": ("x", "y", "z")}))
    assert [row.values["label"] for row in (*data.train, *data.test)] == [["x", "z"], ["y"], ["z"], ["x", "y"], []]


def test_labels_that_look_like_several_are_told(of_rows):
    def notes_of(*labels):
        return load(of_rows([{"text": f"t{place}", "label": label} for place, label in enumerate(labels * 2)]))[1]

    told = "the label 'a;b' looks like several; data.label_separator: ';' reads them so"
    assert notes_of("a", "b", "a;b", "a", "b;c")[0] == told
    assert not any("looks like several" in line for line in notes_of("a", "b", "b, wide", "a", "b"))


def test_lists_written_into_a_csv_file_are_lists(make_recipe, tmp_path):
    path = tmp_path / "marks.csv"
    settings = {"data.train": str(path), "data.test": None}
    path.write_text('text,label\na,"[\'x\', \'y, z\']"\nb,[]\nc,"[""x""]"\nd,[\'x\']\ne,"[\'y, z\']"\n')
    data, notes = load(make_recipe(**settings))
    found = {example.values["text"]: example.values["label"] for example in (*data.train, *data.test)}
    assert found == {"a": ["x", "y, z"], "b": [], "c": ["x"], "d": ["x"], "e": ["y, z"]}
    assert notes[0].startswith("the labels are lists of names: multi-label")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "train.csv").write_bytes(path.read_bytes())
    assert load(make_recipe(**{**settings, "data.train": str(tmp_path / "folder")}))[0].labels == ("x", "y, z")
    names, _ = load(make_recipe(**settings, problem_type=SINGLE))
    assert "['x', 'y, z']" in names.labels
    path.write_text('text,label\na,"[1, 0]"\nb,"[0, 0]"\nc,"[1, 1]"\nd,"[0, 1]"\ne,"[1, 0]"\n')
    assert load(make_recipe(**settings, **{"data.labels": ("p", "q")}))[0].train[2].values["label"] == ["p", "q"]
    path.write_text("text,label\na,['x']\nb,['y']\nc,['x' 'y']\nd,[x]\ne,['y']\n")
    with pytest.raises(DataError, match=r"1 problem\n.*row 5, label: expected a list .*, found '\[x\]'"):
        load(make_recipe(**settings))
    path.write_text("text,label\na,[1 0]\nb,[0 0]\nc,[1 1]\nd,[0 1]\ne,[1 0]\n")  # as numpy prints them
    assert load(make_recipe(**settings, **{"data.labels": ("p", "q")}))[0].train[2].values["label"] == ["p", "q"]


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([["a"], "b", ["c"], ["a", 0.5]], {}, r"row 2, label: expected a list of labels .*row 4, label: label 2: exp"),
        ([["a", "b"]] * 5, {}, r"every training row has the same labels \(a, b\)"),
        ([["a"], [], ["a"]], {}, "a is the only label of multi_label_classification, expected at least two"),
        ([[1, 0], [1, 1], [1]], {}, r"row 3, label: expected a list of 0 and 1 for 2 labels, found \[1\]"),
        ([0.5, 1.5, "much"], {}, r"row 3, label: expected a number \(regression\), found 'much'"),
        ([0.5, float("nan"), 1.5], {}, "row 2, label: expected a finite number, found nan"),
        ([0.5, 10**400, 1.5], {}, "row 2, label: expected a finite number, found 1000"),
        ([2.5] * 5, {}, "every training row has the number 2.5"),
        (["a", "b", "c"], {"problem_type": REGRESSION}, "row 1, label: expected a number"),
        ([True, 2.0, 1.0], {"problem_type": REGRESSION}, "row 1, label: expected a number"),
        (["a", "b", "c"], {"problem_type": MULTI}, "columns of 0 and 1 are named with data.label_columns"),
    ],
)
def test_labels_that_do_not_fit_are_named(rows, settings, message, of_rows):
    rows = [{"text": f"t{place}", "label": label} for place, label in enumerate([*rows, *rows[:1] * 2])]
    with pytest.raises(DataError, match=f"(?s){message}"):
        load(of_rows(rows, **settings))


def test_numbers_of_a_csv_file_are_numbers_where_they_have_a_point(make_recipe, tmp_path):
    settings = {"data.train": str(tmp_path / "n.csv"), "data.test": None, "data.columns": {"text": "t", "label": "y"}}
    (tmp_path / "n.csv").write_text("t,y\n" + "".join(f"t{n},{n / 2}\n" for n in range(10)))
    data, _ = load(make_recipe(**settings))
    assert (data.problem_type, data.labels) == (REGRESSION, ("y",))
    assert all(isinstance(example.values["label"], float) for example in data.train)
    (tmp_path / "n.csv").write_text("t,y\n" + "".join(f"t{n},{n % 3}\n" for n in range(10)))
    assert load(make_recipe(**settings))[0].problem_type == SINGLE
    # Classes that a data frame wrote as 0.0 and 1.0: the recipe says so.
    rows = [{"text": f"t{n}", "label": float(n % 2)} for n in range(10)]
    path = write_jsonl(tmp_path / "f.jsonl", rows)
    data, _ = load(make_recipe(**{"data.train": path, "data.test": None, "problem_type": SINGLE}))
    assert data.labels == ("0", "1")


def test_rows_with_several_labels_are_split_by_their_rarest(make_recipe, tmp_path):
    rows = [{"text": f"t{n}", "label": ["often", *(["rare"] if n % 10 == 0 else [])]} for n in range(100)]
    path = write_jsonl(tmp_path / "s.jsonl", rows)
    data, _ = load(make_recipe(**{"data.train": path, "data.test": None}))
    assert sum("rare" in example.values["label"] for example in data.test) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "text-generation", "problem_type": MULTI}, "problem_type: only text-classification has one"),
        ({"problem_type": "multi-label"}, "problem_type: expected one of single_label_classification, "),
        ({"problem_type": REGRESSION, "data.labels": ("a", "b")}, "data.labels: regression answers with a number"),
        ({"data.label_columns": ("a", "b"), "data.labels": ("a",)}, "data.labels: data.label_columns are the labels"),
        ({"data.label_columns": ("a", "b"), "problem_type": SINGLE}, "problem_type: columns of 0 and 1"),
        ({"data.label_columns": ("a", "b"), "data.label_separator": "|"}, "data.label_columns name the labels already"),
        ({"data.label_separator": "|", "problem_type": SINGLE}, "problem_type: several labels a row"),
        ({"task": "token-classification", "data.label_separator": "|"}, "only text-classification has one"),
        ({"data.label_columns": ("a", "a")}, "data.label_columns: 'a' is listed twice"),
        ({"data.label_columns": ()}, "data.label_columns: the list is empty"),
        ({"data.label_columns": ("a",), "data.columns": {"text": "t", "label": "y"}}, "names a column of labels alr"),
        ({"task": "token-classification", "data.label_columns": ("a",)}, "only text-classification has one"),
    ],
)
def test_contradictions_are_named(settings, message, make_recipe):
    task = settings.pop("task", "text-classification")
    with pytest.raises(RecipeError, match=message):
        make_recipe(task, **settings)


# From rows to a version in the catalogue: the gate holds `predict` against training.


def serve(version, registry):
    backbone = Backbone.from_pretrained(version.base_id, device="cpu", registry=registry)
    backbone.load("tiny")
    return backbone


def test_several_labels_are_learned_and_predicted(of_rows, registry):
    version = train(of_rows(several_rows(200), family="llama", **{"training.epochs": 8}), registry)
    assert version.metrics["test"]["f1"] > 0.9 > version.metrics["majority"]["f1"] + 0.2
    assert (version.manifest.problem_type, version.manifest.labels) == (MULTI, ("bank", "profit", "the"))
    backbone = serve(version, registry)
    rows = several_rows(20, seed=5)
    texts = [row["text"] for row in rows]
    found = [{one["label"] for one in answer} for answer in backbone.predict(texts, "tiny", threshold=0.5)]
    assert sum(one == set(row["label"]) for one, row in zip(found, rows, strict=True)) >= 17
    scores = backbone.predict(texts[0], "tiny", top_k=None)
    assert sum(one["score"] for one in scores) != pytest.approx(1.0)  # each label by itself
    for bad in (1.5, "half", True):
        with pytest.raises(UsageError, match=r"threshold=.*: expected a number from 0 to 1"):
            backbone.predict(texts[:1], "tiny", threshold=bad)


def test_numbers_are_learned_and_predicted(of_rows, registry):
    version = train(of_rows(number_rows(240), **{"training.epochs": 8}), registry)
    assert version.metrics["test"]["pearson"] > 0.9
    assert version.metrics["test"]["rmse"] < 0.5 * version.metrics["mean"]["rmse"]
    assert version.manifest.problem_type == REGRESSION
    backbone = serve(version, registry)
    (answer,) = backbone.predict("profit profit profit sales bank today", "tiny")
    assert answer["label"] == "label"
    assert answer["score"] == pytest.approx(3.5, abs=0.8)
    with pytest.raises(UsageError, match=r"answers with a number \(regression\), not with labels"):
        backbone.predict(["profit"], "tiny", threshold=0.5)


@pytest.mark.parametrize("rows", [several_rows(30), number_rows(30)])
@pytest.mark.parametrize(("family", "method"), [("roberta", "lora"), ("llama", "lora"), ("bert", "qlora")])
def test_every_kind_passes_the_gate_on_every_family(rows, family, method, make_recipe, registry, tmp_path):
    path = write_jsonl(tmp_path / "rows.jsonl", rows)
    settings = {"data.train": path, "data.test": None, "training.max_steps": 2, "method": method}
    version = train(make_recipe("text-classification", family, **settings), registry)
    baseline = "mean" if version.manifest.problem_type == REGRESSION else "majority"
    assert version.metrics.keys() == {"test", "untrained", baseline}


def test_pairs_with_several_labels_pass_the_gate(of_rows, registry):
    rows = [{**row, "text_pair": "the bank"} for row in several_rows(40)]
    columns = {"text": "text", "text_pair": "text_pair", "label": "label"}
    version = train(of_rows(rows, **{"data.columns": columns, "training.max_steps": 2}), registry)
    assert version.manifest.preprocessing.columns == columns


@pytest.mark.filterwarnings("error:A single label")
def test_one_held_out_row_is_enough(make_recipe, registry, tmp_path):
    test = write_jsonl(tmp_path / "one.jsonl", [{"text": "profit rose", "label": "good"}])
    path = write_jsonl(tmp_path / "few.jsonl", tone_rows(8))
    version = train(make_recipe(**{"data.train": path, "data.test": test, "training.max_steps": 3}), registry)
    assert "auc" not in version.metrics["test"]
    assert "no auc: none of the held-out rows has the label 'bad'" in version.manifest.provenance["notices"]


@pytest.mark.parametrize(("family", "shift", "times"), [("bert", 1e5, 1e3), ("llama", 0.0, 1e-3)])
def test_numbers_of_any_size_are_learned(family, shift, times, make_recipe, registry, tmp_path):
    """Prices as well as shares: the head learns standardised numbers, and answers with the data's own."""
    rows = [{**row, "label": row["label"] * times + shift} for row in number_rows(160)]
    settings = {"data.train": write_jsonl(tmp_path / "big.jsonl", rows), "data.test": None, "training.epochs": 8}
    version = train(make_recipe("text-classification", family, **settings), registry)
    assert version.metrics["test"]["rmse"] < 0.6 * version.metrics["mean"]["rmse"]
    curve = version.manifest.provenance["curve"]
    assert curve[0][1] < 30  # in deviations, not in the data's own numbers
    (answer,) = serve(version, registry).predict("profit profit profit sales bank today", "tiny")
    assert answer["score"] == pytest.approx(3.5 * times + shift, abs=1.2 * times)


def test_a_head_is_folded_and_unfolded_to_what_it_was():
    from lorary.adapters.heads.numbers import Float32Linear
    from lorary.training.tasks.heads.scale import Scale, last_layer

    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 1)
    scale = Scale.of([10.0, 20.0, 60.0])
    assert (scale.mean, scale.deviation) == pytest.approx((30.0, np.std([10.0, 20.0, 60.0])))
    inputs = torch.randn(3, 4)
    before = layer(inputs)
    scale.fold(layer)
    torch.testing.assert_close(layer(inputs), before * scale.deviation + scale.mean)
    scale.unfold(layer)
    torch.testing.assert_close(layer(inputs), before, rtol=1e-4, atol=1e-5)
    assert scale.with_mean == Scale(0.0, scale.deviation)
    assert scale.from_zero == Scale(0.0, pytest.approx(np.sqrt(np.mean(np.square([10.0, 20.0, 60.0])))))
    frozen, trained = Float32Linear(4, 1).requires_grad_(False), Float32Linear(4, 1)
    assert last_layer(torch.nn.Sequential(torch.nn.Linear(4, 1), frozen, trained)) is trained
    assert last_layer(torch.nn.Sequential(torch.nn.Linear(4, 1), frozen)) is None
