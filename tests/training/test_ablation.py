"""Ablations: the same rows, the same size of adapter, and a bootstrap that is honest about luck."""

from __future__ import annotations

import json

import numpy
import pytest
from sklearn.metrics import f1_score

from lorary.hub.cli.main import main
from lorary.hub.errors import RecipeError
from lorary.training import train
from lorary.training.experiments.ablation import ARMS, ablate
from lorary.training.experiments.bootstrap import paired_bootstrap
from lorary.training.tasks import make_task
from lorary.training.tasks.metrics.tokens import TokenScore
from lorary.training.tasks.writing import Written
from samples import tone_rows, write_jsonl


@pytest.fixture
def corpus(tmp_path):
    return write_jsonl(tmp_path / "corpus.jsonl", [{"text": row["text"]} for row in tone_rows(24)])


@pytest.fixture
def domain(make_recipe, registry, corpus, tmp_path):
    train(
        make_recipe(
            "text-generation", **{
                "name": "headlines", "strategy": "continual", "data.train": corpus, "data.test": None,
                "output": str(tmp_path / "domain"), "lora.rank": 6, "training.epochs": 2, "training.batch_size": 1,
            },
        ),
        registry,
    )  # fmt: skip
    return "headlines@1"


def test_arms_differ_in_their_beginning_alone(domain, make_recipe, registry):
    recipe = make_recipe(family="llama", rows=32, **{"from": domain, "strategy": "intermediate", "lora.rank": 6})
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"epochs": 1.0})})
    found = ablate(recipe, registry, seeds=2)
    assert tuple(found.arms) == ARMS
    assert (found.seeds, found.held_out, found.parent) == ((42, 43), 8, "headlines@1")
    assert [version.reference for version in registry.versions()] == ["headlines@1"]
    values = found.arms["domain then task"]["f1"]["values"]
    lone = train(recipe, registry)
    assert values[0] == lone.metrics["test"]["f1"]
    mean = found.arms["domain then task"]["f1"]["mean"] - found.arms["task"]["f1"]["mean"]
    assert found.gain.value == pytest.approx(mean)
    assert found.gain.low <= found.gain.high
    alone = train(
        make_recipe(
            family="llama", rows=32,
            **{"name": "alone", "lora.rank": 6, "training.epochs": 1, "output": f"{recipe.output}-alone"},
        ),
        registry,
    )  # fmt: skip
    assert found.arms["task"]["f1"]["values"][0] == alone.metrics["test"]["f1"]
    assert found.arms["direct"]["f1"]["values"][0] == alone.metrics["untrained"]["f1"]


def test_a_corpus_trains_and_registers_the_domain_stage(corpus, make_recipe, registry, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    recipe = make_recipe(family="llama", rows=24, **{"training.epochs": 1, "output": None})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    words = ["train", "recipe.yaml", "--ablate", "--corpus", corpus, "--seeds", "2", "--registry", str(registry.path)]
    assert main([*words, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["parent"] == "tiny-domain@1"
    domain = registry.resolve("tiny-domain")
    assert (domain.strategy, domain.manifest.provenance["recipe"]["lora"]["rank"]) == ("continual", recipe.lora.rank)
    assert set(told["arms"]) == set(ARMS)
    assert told["gain"]["verdict"] in ("better", "worse", "no difference")
    one = ["train", "recipe.yaml", "--ablate", "--from", "tiny-domain", "--seeds", "1", *words[-2:]]
    assert main([*one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["seeds"] == [42]


@pytest.mark.parametrize(
    ("settings", "corpus", "words"),
    [
        ({}, None, "from: missing; an ablation needs a domain adapter"),
        ({"from": "legal@1"}, "text.jsonl", "leave one of them out"),
        ({"from": "legal@1", "training.folds": 3}, None, "training.folds: an ablation compares seeds"),
        ({"strategy": "direct"}, "text.jsonl", "strategy: 'direct' trains nothing"),
        ({"method": "adalora"}, "text.jsonl", "method: 'adalora' can't go on with a domain adapter"),
        ({"lora.layers": "first 1"}, "text.jsonl", "lora.layers: the domain adapter of --corpus has it settled"),
        ({"lora.parameters": "experts"}, "text.jsonl", "lora.parameters: .* can't go on with a domain adapter"),
        ({"lora.init": "pissa"}, "text.jsonl", "lora.init: the domain adapter of --corpus has it settled"),
    ],
)
def test_what_can_not_be_compared_is_refused(settings, corpus, words, make_recipe, registry):
    with pytest.raises(RecipeError, match=words):
        ablate(make_recipe(**settings), registry, corpus=corpus)


@pytest.mark.parametrize(
    ("corpus", "words"),
    [
        ("texts.jsonl", "--corpus: no such file 'texts.jsonl'"),
        ("rows.xlsx", "--corpus: 'rows.xlsx' isn't one of"),
    ],
)
def test_a_corpus_that_is_not_there_is_named_as_it_was_typed(corpus, words, make_recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recipe.yaml").write_text(make_recipe(**{"output": None}).to_yaml())
    typed = ["train", "recipe.yaml", "--ablate", "--corpus", corpus, "--registry", str(tmp_path / "registry.db")]
    assert main(typed) == 2
    said = capsys.readouterr().err
    assert words in said
    assert "data.train" not in said
    assert not (tmp_path / "runs").exists()


def test_a_corpus_without_an_ablation_is_bad_usage(make_recipe, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(make_recipe(**{"output": None}).to_yaml())
    assert main(["train", str(tmp_path / "recipe.yaml"), "--corpus", "text.txt"]) == 2
    assert "--ablate" in capsys.readouterr().err


@pytest.fixture
def task(make_recipe):
    return make_task(make_recipe(), ("bad", "good"), "single_label_classification")


def answers(golds, wrong):
    """Each row's scores for (bad, good); those in ``wrong`` are for the other label."""
    right = {"bad": (0.9, 0.1), "good": (0.2, 0.8)}
    return [right[gold][::-1] if place in wrong else right[gold] for place, gold in enumerate(golds)]


def labels(outcomes):
    return ["bad" if bad > good else "good" for bad, good in outcomes]


def test_the_main_score_alone_is_that_of_the_metrics(make_recipe):
    labels = ("a", "b", "c", "never")
    task = make_task(make_recipe(), labels, "single_label_classification")
    random = numpy.random.default_rng(0)
    for rows in (1, 7, 40):
        golds = [labels[place] for place in random.integers(0, 3, rows)]
        outcomes = [tuple(row) for row in random.random((rows, 4)) * (1, 1, 1, 0)]
        assert task.main_score(outcomes, golds) == pytest.approx(task.metrics(outcomes, golds)["f1"], abs=1e-12)


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_rows_are_scored_by_their_places_as_they_are_themselves(kind, make_recipe):
    labels, random = ("a", "b", "c"), numpy.random.default_rng(0)
    task = make_task(make_recipe(), None if kind == "regression" else labels, kind)
    golds, outcomes = [labels[place] for place in random.integers(0, 3, 20)], [*map(tuple, random.random((20, 3)))]
    if kind == "multi_label_classification":
        golds, outcomes = [[gold, "a"] for gold in golds], [task.decided(outcome) for outcome in outcomes]
    elif kind == "regression":
        golds, outcomes = random.random(20).tolist(), random.random(20).tolist()
    score = task.scoring(outcomes, golds)
    for places in (range(20), [3], [7, 7, 1, 19, 0, 7]):
        drawn = [outcomes[place] for place in places], [golds[place] for place in places]
        assert score(places) == pytest.approx(task.metrics(*drawn)[task.main_metric], abs=1e-12)
        assert score(places) == task.main_score(*drawn)


def test_the_bootstrap_tells_a_difference_from_luck(task):
    golds = ["bad", "good"] * 50
    good, poor = answers(golds, range(0, 100, 25)), answers(golds, range(0, 100, 3))
    clear = paired_bootstrap(task, golds, [good, good], [poor, poor], resamples=200)
    expected = f1_score(golds, labels(good), average="macro") - f1_score(golds, labels(poor), average="macro")
    assert clear.value == pytest.approx(expected)
    assert (clear.verdict, clear.better) == ("better", 1.0)
    assert 0 < clear.low < clear.value < clear.high
    assert paired_bootstrap(task, golds, [poor], [good], resamples=200).verdict == "worse"
    near = answers(golds, range(1, 100, 24))
    assert paired_bootstrap(task, golds, [near], [good], resamples=200).verdict == "no difference"
    same = paired_bootstrap(task, golds, [good], [good], resamples=50)
    assert (same.value, same.low, same.high, same.verdict) == (0.0, 0.0, 0.0, "no difference")


def test_the_bootstraps_interval_is_that_of_drawing_rows_by_hand(task):
    golds = ["bad", "good"] * 30
    one, other = answers(golds, {1, 5, 9}), answers(golds, {2, 3, 4, 5, 6, 7})
    found = paired_bootstrap(task, golds, [one], [other], resamples=100, seed=3)
    random, differences = numpy.random.default_rng(3), []
    for _ in range(100):
        rows = random.integers(0, 60, 60)
        drawn = [numpy.array(values)[rows] for values in (golds, labels(one), labels(other))]
        scores = [f1_score(drawn[0], values, average="macro", zero_division=0.0) for values in drawn[1:]]
        differences.append(scores[0] - scores[1])
    assert (found.low, found.high) == pytest.approx(tuple(numpy.quantile(differences, (0.025, 0.975))))


@pytest.mark.parametrize(
    ("task", "settings"),
    [("translation", {}), ("text-generation", {"generation.rows": 2, "generation.max_new_tokens": 4})],
)
def test_the_bootstrap_draws_the_rows_that_the_main_metric_reads(task, settings, make_recipe):
    task = make_task(make_recipe(task, **settings), None)
    golds = ["the firm said sales grew", "the bank report said loss"] * 10
    score = TokenScore(loss=2.0, correct=1, tokens=4)

    def written(texts):
        return [Written(score, texts[place] if place < 2 else None) for place in range(len(golds))]

    found = paired_bootstrap(task, golds, [written(golds)], [written(["the firm", "the bank"])], resamples=100)
    assert found.verdict == ("better" if task.main_metric == "bleu" else "no difference")
