"""Learning curves: nested, stratified sizes, and an advice that follows its rule."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from lorary.hub.cli.main import main
from lorary.hub.errors import DataError, RecipeError
from lorary.training import measure
from lorary.training.data import load_data
from lorary.training.experiments.curve import Point, advise, curve_sizes, in_proportion, learning_curve
from lorary.training.experiments.summary import summarise
from lorary.training.progress import Reporter
from lorary.training.run import train


def points(*values, rows=(10, 20, 40, 80), metric="f1"):
    """A point for each tuple of the seeds' values."""
    return [Point(n, summarise([{metric: value} for value in at])) for n, at in zip(rows, values, strict=True)]


def test_sizes_grow_by_one_factor_and_end_with_all_rows():
    assert curve_sizes(128, 5, 8) == [8, 16, 32, 64, 128]
    assert curve_sizes(100, 2, 10) == [10, 100]
    assert curve_sizes(16, 9, 8)[-1] == 16
    with pytest.raises(DataError, match="15 training rows are too few for a curve; expected at least 16"):
        curve_sizes(15, 3, 8)


def test_every_beginning_has_the_labels_in_proportion(make_recipe):
    rows = load_data(make_recipe(rows=64)).train
    uneven = (
        tuple(row for row in rows if row.values["label"] == "good")
        + tuple(row for row in rows if row.values["label"] == "bad")[:8]
    )
    ordered = in_proportion(uneven, seed=1)
    assert Counter(row.place for row in ordered) == Counter(row.place for row in uneven)
    for count in (10, 20, 40):
        bad = sum(row.values["label"] == "bad" for row in ordered[:count])
        assert abs(bad - count * 8 / len(uneven)) <= 1
    assert in_proportion(uneven, seed=2) != ordered
    assert in_proportion(uneven, seed=1) == ordered


@pytest.mark.parametrize(
    ("metric", "values", "words"),
    [
        ("f1", [(0.5, 0.5), (0.6, 0.6), (0.7, 0.7), (0.79, 0.81)], "more rows would help; a power law"),
        ("f1", [(0.5, 0.6), (0.7, 0.8), (0.8, 0.9), (0.81, 0.91)], "more rows like these would hardly help"),
        ("f1", [(0.5, 0.5), (0.6, 0.6), (0.9, 0.9), (0.6, 0.61)], "worse by more than twice"),
        ("loss", [(4.0, 4.0), (3.0, 3.0), (2.5, 2.5), (2.0, 2.01)], "more rows would help"),
        ("loss", [(2.0, 2.0), (2.5, 2.5), (3.0, 3.0), (4.0, 4.01)], "worse by more than twice"),
        ("f1", [(0.5,), (0.6,), (0.7,), (0.8,)], "use at least --seeds 2"),
    ],
)
def test_the_advice_holds_the_last_gain_against_the_seeds_noise(metric, values, words):
    assert words in advise(metric, points(*values, metric=metric))


def test_the_power_law_is_that_of_exact_points():
    errors = [0.8 * rows**-0.5 for rows in (10, 20, 40, 80)]
    advice = advise("f1", points(*[(1 - error, 1 - error) for error in errors]))
    assert f"expects {1 - 0.8 * 160**-0.5:.4g} at 160 rows" in advice


def direct(recipe, seed):
    """The base as it is, with the head of a seed."""
    training = recipe.training.model_copy(update={"seed": seed})
    return measure(recipe.model_copy(update={"strategy": "direct", "training": training}))


def test_the_last_point_is_the_recipes_own_run_and_nothing_is_registered(make_small, registry):
    recipe = make_small(rows=32, held=20, **{"training.max_steps": 2, "training.seeds": 2})
    curve = learning_curve(recipe, points=2, progress=Reporter())
    assert [len(point.metrics["f1"]["values"]) for point in curve.points] == [2, 2]
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"seeds": 1})})
    assert [point.rows for point in curve.points] == [8, 32]
    assert registry.versions() == []
    ordered = in_proportion(load_data(recipe).train, 42)
    from samples import write_jsonl

    write_jsonl(type(registry.path)(recipe.data.train), [dict(row.values) for row in ordered])
    version = train(recipe, registry)
    first = {name: figures["values"][0] for name, figures in curve.points[-1].metrics.items()}
    assert first == {name: version.metrics["test"][name] for name in first}
    assert "auc" in first  # it knows the rows' order after few steps, where f1 may not
    assert curve.baselines["majority"] == pytest.approx(version.metrics["majority"])
    heads = [direct(recipe, seed).metrics["untrained"]["f1"] for seed in (42, 43)]
    assert curve.baselines["untrained"]["f1"] == pytest.approx(sum(heads) / 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training.folds": 3}, "training.folds: the curve has runs of its own"),
        ({"strategy": "direct"}, "strategy: 'direct' trains nothing"),
        ({"from": "legal@1"}, "from: the curve shows what rows alone do"),
    ],
)
def test_a_curve_of_something_else_is_refused(settings, words, make_recipe):
    with pytest.raises(RecipeError, match=words):
        learning_curve(make_recipe(**settings))


def test_the_command_prints_draws_and_gives_json(make_small, tmp_path, capsys):
    recipe = make_small(rows=16, **{"training.max_steps": 1, "output": None})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    words = ["curve", str(tmp_path / "recipe.yaml"), "--points", "2", "--seeds", "2"]
    assert main([*words, "--plot", str(tmp_path / "curve.png")]) == 0
    shown = capsys.readouterr().out
    assert shown.splitlines()[0].split() == ["rows", "f1", "spread", "seed", "42", "seed", "43"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert main([*words[:-1], "1", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [point["rows"] for point in told["points"]] == [8, 16]
    assert told["metric"] == "f1"
    assert told["advice"]


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere/curve.png", "there is no folder"),
        (".", "it is a folder"),
        ("curve", "expected a name that ends in one of .*png"),
        ("recipe.yaml", "expected a name that ends in one of .*png"),
    ],
)
def test_a_plot_that_cannot_be_drawn_is_refused_before_anything_is_trained(
    place, words, make_recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lorary.training.experiments.curve.load_data", lambda *args: pytest.fail("rows were read"))
    (tmp_path / "recipe.yaml").write_text(make_recipe(**{"output": None}).to_yaml())
    assert main(["curve", "recipe.yaml", "--plot", place]) == 2
    assert re.search(f"--plot {re.escape(place)}: {words}", capsys.readouterr().err)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_takes_the_plot_but_not_the_figures(make_small, tmp_path, capsys):
    recipe = make_small(rows=16, **{"training.max_steps": 1, "output": None})
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    (tmp_path / "full.png").symlink_to("/dev/full")
    words = ["curve", str(tmp_path / "recipe.yaml"), "--points", "2", "--seeds", "1", "--json"]
    assert main([*words, "--plot", str(tmp_path / "full.png")]) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["points"]
    assert "the curve can't be written there" in told.err
