"""Several seeds and folds: each run is what it would be alone, and the right adapter is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.model_selection import StratifiedKFold

from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.cli.experiments import print_repeated
from lorary.hub.errors import DataError, InterruptedRunError, RecipeError, UsageError
from lorary.training import measure, train
from lorary.training.data import load_data
from lorary.training.experiments.folds import all_rows, final_recipe, fold_data
from lorary.training.experiments.session import Session
from lorary.training.experiments.summary import spread
from lorary.training.model import load_for, reseed
from lorary.training.progress import Reporter
from lorary.training.report.content import read_report
from lorary.training.report.page import page
from lorary.training.tasks import make_task
from runs import SHORT
from samples import question_rows, tone_rows, write_jsonl


def seeded(recipe, seed):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update={"seed": seed})})


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "t5", "modernbert"])
def test_reseeding_draws_the_head_that_loading_with_the_seed_draws(family, make_recipe):
    recipe = make_recipe(family=family)
    task = make_task(recipe, ("bad", "good"))
    base = load_for(task, recipe)
    reseed(base, 7)
    expected = load_for(task, seeded(recipe, 7)).model.state_dict()
    assert any(name.startswith(("class", "score")) for name in base.new)
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_session_gives_what_lone_runs_give(make_small, tmp_path):
    recipe = make_small(rows=24, **{"training.epochs": 1})
    data = load_data(recipe)
    session = Session(tmp_path / "both", Reporter())
    bare = None
    for seed in (42, 43):
        together = session.run(seeded(recipe, seed), data, f"seed {seed}")
        session.release(together)
        body = {name: t.clone() for name, t in together.prepared.base.model.bert.state_dict().items()}
        assert bare is None or all(torch.equal(body[name], tensor) for name, tensor in bare.items())
        bare = {name: tensor for name, tensor in body.items() if "pooler" not in name}
    alone = Session(tmp_path / "alone", Reporter()).run(seeded(recipe, 43), data, "alone")
    assert together.metrics == alone.metrics
    for key, tensor in alone.trained.tensors.items():
        assert torch.equal(together.trained.tensors[key], tensor)


def test_of_several_seeds_the_best_on_the_validation_rows_is_kept(make_small, registry, tmp_path):
    settings = {"training.early_stopping": 1, "training.epochs": 1, "data.validation_size": 0.3}
    recipe = make_small(rows=60, **{"training.seeds": 2, **settings})
    version = train(recipe, registry)
    told = version.manifest.provenance["seeds"]
    assert told["seeds"] == [42, 43]
    assert told["kept"] == told["seeds"][told["validation"].index(max(told["validation"]))]
    assert "validation rows" in told["because"]
    figures = told["metrics"]["f1"]
    place = told["seeds"].index(told["kept"])
    assert version.metrics["test"]["f1"] == figures["values"][place]
    assert (figures["mean"], figures["std"]) == pytest.approx(tuple(spread(figures["values"]).values())[:2])
    assert version.manifest.provenance["seed"] == told["kept"]
    assert [v.reference for v in registry.versions()] == ["tiny@1"]
    assert registry.verify() == []
    alone = recipe.model_copy(
        update={
            "training": recipe.training.model_copy(update={"seeds": 1, "seed": told["kept"]}),
            "output": str(tmp_path / "alone"),
            "name": "alone",
        }
    )
    if told["kept"] == 42:  # the same split of validation rows, so the same run
        assert train(alone, registry).digest == version.digest
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_of_losses_the_least_is_the_best(make_small, registry):
    settings = {"training.early_stopping": 1, "training.epochs": 1, "data.validation_size": 0.3}
    recipe = make_small("text-generation", rows=32, **{"training.seeds": 2, "training.max_steps": 2, **settings})
    told = train(recipe, registry).manifest.provenance["seeds"]
    assert told["metric"] == "loss"
    assert told["validation"][0] != told["validation"][1]
    assert told["kept"] == told["seeds"][told["validation"].index(min(told["validation"]))]


def test_without_validation_rows_the_recipes_own_seed_is_kept(make_small, registry, tmp_path):
    recipe = make_small(rows=16, **{"training.seeds": 2, "training.epochs": 1, "training.seed": 5})
    version = train(recipe, registry)
    told = version.manifest.provenance["seeds"]
    assert (told["kept"], told["validation"]) == (5, [None, None])
    assert "no validation rows" in told["because"]
    alone = train(seeded(make_small(rows=16, **{"training.epochs": 1, "output": str(tmp_path / "alone")}), 5), registry)
    assert alone.digest == version.digest


class StoppedAt(Reporter):
    def __init__(self, phase):
        super().__init__()
        self.at = phase

    def phase(self, text):
        if text == self.at:
            raise KeyboardInterrupt


@pytest.mark.parametrize("several", ["seeds", "folds"])
def test_several_runs_go_on_where_they_were_stopped(several, make_small, registry, tmp_path):
    settings = {f"training.{several}": 2, "training.epochs": 1, "lora.dropout": 0.2}
    whole = train(make_small(rows=16, **settings, output=str(tmp_path / "whole")), registry)
    recipe = make_small(rows=16, **settings)
    stop = StoppedAt("seed 43: measuring" if several == "seeds" else "fold 2 of 2: measuring")
    with pytest.raises(InterruptedRunError, match="--resume"):
        train(recipe, registry, stop)
    again = train(recipe, registry, resume=True)
    assert again.digest == whole.digest
    assert again.metrics == whole.metrics
    assert not (tmp_path / "out.incomplete").exists()


def test_folds_hold_every_row_out_once_in_proportion(make_recipe):
    recipe = make_recipe(**{"training.folds": 4})
    data = load_data(recipe)
    rows = data.train
    folds = list(fold_data(recipe, data, rows, lambda line: None))
    held = [example.place for fold in folds for example in fold.test]
    assert sorted(held) == sorted(example.place for example in rows)
    labels = [example.values["label"] for example in rows]
    splits = StratifiedKFold(4, shuffle=True, random_state=42).split(labels, labels)
    for fold, (kept, out) in zip(folds, splits, strict=True):
        assert fold.train == tuple(rows[index] for index in kept)
        assert fold.test == tuple(rows[index] for index in out)


@pytest.mark.parametrize(("rare", "held", "notes"), [(8, [2, 2, 2, 2], 0), (3, [0, 1, 1, 1], 1)])
def test_folds_of_several_labels_a_row_have_the_rarest_in_proportion(rare, held, notes, make_recipe, tmp_path):
    rows = [
        {"text": row["text"], "label": [row["label"], *(["debt"] if place < rare else [])]}
        for place, row in enumerate(tone_rows(64))
    ]
    recipe = make_recipe(**{"data.train": write_jsonl(tmp_path / "several.jsonl", rows), "training.folds": 4})
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"test": None})})
    data, said = load_data(recipe), list[str]()
    folds = list(fold_data(recipe, data, data.train + data.test, said.append))
    assert sorted(sum("debt" in row.values["label"] for row in fold.test) for fold in folds) == held
    assert said == ["'debt' has 3 rows, fewer than 4 folds: not every fold holds one of them out"] * notes


@pytest.mark.parametrize("several", ["seeds", "folds"])
def test_the_kept_version_tells_what_is_odd_in_the_rows(several, make_small, registry, tmp_path):
    rows = [*tone_rows(30), *({"text": "bank", "label": "GOOD"},) * 4]
    settings = {"data.train": write_jsonl(tmp_path / "odd.jsonl", rows), "data.test": None, **SHORT}
    recipe = make_small(**settings, **{f"training.{several}": 2})
    told = train(recipe, registry).manifest.provenance["notices"]
    assert any("labels that look alike are kept apart" in line for line in told)
    if several == "folds":
        assert any("held out by a fold that trains on the same" in line for line in told)


def test_folds_keep_questions_about_one_context_together(make_recipe, tmp_path):
    rows = [{**row, "id": f"{row['id']}-{copy}"} for row in question_rows(20) for copy in range(3)]
    recipe = make_recipe(
        "question-answering", **{"data.train": write_jsonl(tmp_path / "q.jsonl", rows), "training.folds": 4}
    )
    data = load_data(recipe)
    folds = list(fold_data(recipe, data, data.train, lambda line: None))
    assert sorted(row.place for fold in folds for row in fold.test) == sorted(row.place for row in data.train)
    for fold in folds:
        assert not {row.values["context"] for row in fold.test} & {row.values["context"] for row in fold.train}
        assert len(fold.test) == 15
    other = list(fold_data(seeded(recipe, 7), data, data.train, lambda line: None))
    held, others = ({frozenset(row.place for row in fold.test) for fold in found} for found in (folds, other))
    assert held != others  # by the seed
    assert all(len(fold.test) == 15 for fold in other)
    short = replace(data, train=data.train[:9])
    with pytest.raises(DataError, match="3 contexts are too few for 4 folds"):
        list(fold_data(recipe, short, short.train, lambda line: None))


def test_folds_tell_of_rows_that_are_there_twice_and_of_what_else_is_odd(make_recipe, tmp_path):
    """What the first split says of its own rows is left out: folds don't go by it."""
    rows = tone_rows(40, seed=3) + [{"text": "bank", "label": label} for label in ("good", "bad", "bad")]
    rows += [{"text": "one row", "label": "GOOD"}]
    settings = {
        "data.train": write_jsonl(tmp_path / "twice.jsonl", rows), "data.test": None, "training.folds": 4,
        "training.early_stopping": 2,
    }  # fmt: skip
    recipe, said = make_recipe(**settings), list[str]()
    data = load_data(recipe, said.append)
    assert said == ["labels that look alike are kept apart: 'GOOD' and 'good'; if they are one, mend the rows"]
    all_rows_, _ = all_rows(recipe, data)
    folds = list(fold_data(recipe, data, all_rows_, said.append))
    torn = [row for fold in folds for row in fold.test if row.inputs in {other.inputs for other in fold.train}]
    assert torn
    assert said[-1].startswith(f"{len(torn)} of 44 rows are held out by a fold that trains on the same once more")


def test_folds_without_test_rows_end_in_an_adapter_of_all_rows(make_small, registry, tmp_path):
    settings = {"training.early_stopping": 2, "data.validation_size": 0.5, "report.write": True, "report.rows": 7}
    recipe = make_small(rows=32, **{"data.test": None, "training.folds": 2, **settings})
    version = train(recipe, registry)
    told = version.manifest.provenance["folds"]
    assert (told["count"], sum(told["rows"])) == (2, 32)
    assert version.metrics["test"] == {name: figures["mean"] for name, figures in told["metrics"].items()}
    assert "gap" not in version.manifest.provenance
    again = read_checkpoint(tmp_path / "out").manifest.provenance["recipe"]["training"]
    assert (again["early_stopping"], again["epochs"]) == (0, told["epochs"])
    assert told["steps"] == version.manifest.provenance["steps"]
    assert "folds" not in again
    assert registry.verify() == []
    assert version.manifest.provenance["data"]["rows"] == {"train": 32, "validation": 0, "test": 0}
    # The report has what each row came to in the run that hadn't seen it.
    report = read_report(tmp_path / "out" / "report.json", "out")
    assert report.metrics == version.metrics
    assert report.facts["rows"] == "32 train"
    assert [curve.name for curve in report.folds] == ["fold 1", "fold 2"]
    assert all(curve.points and curve.validations for curve in report.folds)
    assert sum(map(sum, report.mistakes.counts)) == report.ranked == 32
    right = sum(row[place] for place, row in enumerate(report.mistakes.counts))
    accuracies = told["metrics"]["accuracy"]["values"]
    assert right == pytest.approx(sum(rows * one for rows, one in zip(told["rows"], accuracies, strict=True)))
    assert len(report.worst) == 7
    assert [row.loss for row in report.worst] == sorted((row.loss for row in report.worst), reverse=True)
    assert "each by the fold" in page(report)
    assert {"report.html", "folds.png"} <= set(version.files)


@pytest.mark.parametrize(
    ("best", "epochs", "counted"),
    [
        ([2.0, 9.0, 4.0], 4.0, False),
        ([3.0, 4.0, 5.0, 6.0], 4.0, False),  # to the even one
        ([2.0, None, 4.0], 3.0, False),
        ([None, 0.25], 0.25, False),
        ([None, None], 8.0, True),
    ],
)
@pytest.mark.parametrize("steps", ["min_steps", "max_steps"])
def test_the_run_on_all_rows_has_the_median_of_the_folds_epochs(best, epochs, counted, steps, make_recipe):
    recipe = make_recipe(**{"training.epochs": 8, f"training.{steps}": 160, "training.early_stopping": 2})
    training = final_recipe(recipe, best, (), []).training
    assert (training.epochs, training.early_stopping) == (epochs, 0)
    assert getattr(training, steps) == (160 if counted else None)


@pytest.mark.parametrize(
    ("asked", "found", "kept"),
    [
        ("tuned", [(0.2, 0.9), (0.6, 0.1), (0.3, 0.5)], {"debt": 0.3, "profit": 0.5}),
        (None, [(0.25, 0.5), (0.75, 0.25)], {"debt": 0.5, "profit": 0.375}),
        ("tuned", [], None),
        (0.5, [(0.5, 0.5), (0.5, 0.5)], 0.5),
        ({"debt": 0.125}, [(0.125, 0.5)], {"debt": 0.125}),
    ],
)
def test_the_run_on_all_rows_has_the_median_of_the_folds_thresholds(asked, found, kept, make_recipe):
    recipe = make_recipe()
    recipe = recipe.model_copy(update={"training": recipe.training.model_copy(update={"threshold": asked})})
    assert final_recipe(recipe, [1.0], ("debt", "profit"), found).training.threshold == kept


def told_of_folds(version, capsys):
    """What a version's provenance says of its folds, and what is printed of it."""
    told = version.manifest.provenance["folds"]
    print_repeated("folds", told)
    return told, capsys.readouterr().out


def test_without_validation_rows_all_rows_have_the_least_steps_that_are_told(make_small, registry, capsys):
    settings = {"training.folds": 2, "training.batch_size": 8, "training.min_steps": 6}
    version = train(make_small(rows=16, **settings), registry)
    told, printed = told_of_folds(version, capsys)
    assert (told["epochs"], told["steps"], version.manifest.provenance["steps"]) == (3.0, 6, 6)
    assert "Kept: an adapter trained on all rows for 3 epochs." in printed


def test_folds_beside_test_rows_leave_these_alone(make_small, registry, capsys):
    settings = {"training.folds": 2, "training.batch_size": 4, "training.max_steps": 3, "report.write": True}
    version = train(make_small(rows=16, **settings), registry)
    told, printed = told_of_folds(version, capsys)
    assert sum(told["rows"]) == 16
    report = read_report(registry.checkpoint(version).files["report.json"], "out")
    assert (report.ranked, len(report.folds), report.metrics) == (8, 2, version.metrics)
    assert "each by the fold" not in page(report)
    assert version.manifest.provenance["gap"]["metric"] == "f1"
    # Nor did validation rows of the folds say anything of the steps.
    assert (told["epochs"], told["steps"], version.manifest.provenance["steps"]) == (None, 3, 3)
    assert "Kept: an adapter trained on all rows for 3 steps." in printed


def test_too_few_rows_for_the_folds(make_recipe, registry, tmp_path):
    with pytest.raises(DataError, match="12 rows are too few for 8 folds; expected at least 16"):
        train(make_recipe(rows=12, **{"training.folds": 8}), registry)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"training.seeds": 3, "training.folds": 3}, "training.folds: each fold is a run of its own"),
        ({"training.folds": 1}, "training.folds: expected a number of at least 2"),
        ({"training.seeds": 0}, "training.seeds: expected a number of at least 1"),
        ({"data.test": None, "data.test_size": 0.2, "training.folds": 3}, "every row is held out once"),
        ({"strategy": "direct", "training.seeds": 3}, "training.seeds: strategy 'direct' trains nothing"),
        ({"strategy": "direct", "from": "legal@1"}, "from: strategy 'direct' measures the base as it is"),
    ],
)
def test_settings_that_contradict_one_another(settings, words, make_recipe):
    with pytest.raises(RecipeError, match=words):
        make_recipe(**settings)


@pytest.mark.parametrize("task", ["text-classification", "text-generation"])
def test_a_base_is_measured_as_training_measures_it_untrained(task, make_small, registry):
    recipe = make_small(task, **{"strategy": "direct"})
    reporter = Reporter()
    measured = measure(recipe, reporter)
    trained = train(make_small(task, **{"training.max_steps": 1}), registry)
    assert measured.metrics["untrained"] == pytest.approx(trained.metrics["untrained"])
    assert any("level of chance" in line for line in reporter.notices) == (task == "text-classification")
    with pytest.raises(UsageError, match=r"lorary\.training\.measure"):
        train(recipe, registry)


def test_learning_by_heart_is_warned_of(make_small, registry, tmp_path):
    rows = [{**row, "label": ("bad", "good")[index * 7 % 11 % 2]} for index, row in enumerate(tone_rows(16))]
    recipe = make_small(held=20, **{
        "data.train": write_jsonl(tmp_path / "noise.jsonl", rows), "training.epochs": 40, "training.batch_size": 16,
        "lora.dropout": 0.0, "training.learning_rate": 0.02,
    })  # fmt: skip
    reporter = Reporter()
    version = train(recipe, registry, reporter)
    gap = version.manifest.provenance["gap"]
    assert gap["train"] > gap["test"] + 0.1
    assert any(line.startswith("overfitting: f1 is ") for line in reporter.notices)
