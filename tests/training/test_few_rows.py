"""Few rows: enough steps for a head that is trained from nothing, and no judging by a handful of rows."""

from __future__ import annotations

import pytest

from lorary.hub.errors import RecipeError
from lorary.training import Recipe, train
from lorary.training.data import Example, load_data
from lorary.training.data.splits import fewest_validation, split_rows
from lorary.training.distributed import Group
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.recipe.steps import with_enough_epochs
from samples import ROWS, tone_rows, write_jsonl


@pytest.fixture
def plain(bases, tmp_path):
    """A recipe as flags alone give it."""

    def make(count=40, task="text-classification", **settings):
        flags = {
            "name": "tiny", "domain": "finance", "task": task, "base": bases("bert"), "device": "cpu",
            "data.train": write_jsonl(tmp_path / "train.jsonl", ROWS[task](count)),
            "data.test": write_jsonl(tmp_path / "test.jsonl", ROWS[task](8, seed=9)), "output": str(tmp_path / "out"),
        }  # fmt: skip
        return Recipe.from_flags({**flags, **settings})

    return make


def test_the_recipes_own_number_of_epochs_is_never_raised(plain):
    assert plain().training.min_steps == 160
    assert plain(**{"training.epochs": 2}).training.min_steps is None
    assert plain(**{"training.max_steps": 20}).training.min_steps is None
    assert plain(**{"training.epochs": 2, "training.min_steps": 50}).training.min_steps == 50
    assert plain(task="token-classification").training.min_steps is None


@pytest.mark.parametrize(
    ("rows", "settings", "epochs"),
    [
        (150, {}, 16),
        (300, {}, 9),
        (319, {}, 8),
        (5000, {}, 8),
        (150, {"training.gradient_accumulation": 4}, 54),
        (150, {"training.batch_size": 75, "training.min_steps": 7}, 8),
        (150, {"training.batch_size": 150, "training.min_steps": 9}, 9),
        (150, {"training.max_steps": 4}, 8),
    ],
)
def test_epochs_make_enough_steps(rows, settings, epochs, plain):
    assert with_enough_epochs(plain(**settings), rows).training.epochs == epochs


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"training.max_steps": 4}, "min_steps: training.max_steps says how many steps"),
        ({"task": "text-generation", "training.packing": True}, "min_steps: with training.packing: true nobody knows"),
    ],
)
def test_a_least_number_of_steps_that_can_not_be_met(settings, message, plain):
    with pytest.raises(RecipeError, match=message):
        plain(**settings, **{"training.min_steps": 9})


def test_two_processes_of_eight_rows_go_as_often_through_them_as_one_of_sixteen(plain):
    settings = {"training.min_steps": 30, "training.epochs": 1, "training.max_length": 8}

    def epochs(size, processes):
        recipe = plain(40, **settings, **{"training.batch_size": size})
        return prepare(recipe, load_data(recipe), Reporter(), group=Group(processes, 0)).recipe.training.epochs

    assert epochs(8, 2) == epochs(16, 1) == 10


def test_a_run_on_few_rows_goes_through_them_more_often(plain, registry):
    settings = {"training.min_steps": 6, "training.epochs": 1, "training.batch_size": 8, "report.write": False}
    version = train(plain(16, **settings), registry)
    provenance = version.manifest.provenance
    assert (provenance["steps"], provenance["recipe"]["training"]["epochs"]) == (6, 3.0)
    told = "16 training rows are soon gone through: 3 epochs in place of 1, for at least 6 steps (training.min_steps)"
    assert told in provenance["notices"]


@pytest.mark.parametrize(
    ("count", "task", "settings", "validation"),
    [
        (150, "text-classification", {}, 0),
        (300, "text-classification", {}, 30),
        (150, "text-classification", {"data.validation_size": 0.1}, 15),
        (150, "token-classification", {}, 15),
        (300, "text-classification", {"data.validation_size": 0}, 0),
    ],
)
def test_a_classifier_is_stopped_early_by_enough_rows_only(count, task, settings, validation, plain):
    data = load_data(plain(count, task, **settings), lambda line: None)
    assert len(data.validation) == validation
    assert len(data.train) == count - validation


def test_a_part_of_the_rows_is_judged_by_as_many(plain):
    """The smaller sizes of a learning curve have a part of the validation rows."""
    assert fewest_validation(plain()) == 30
    assert fewest_validation(plain(**{"data.validation_size": 0.1})) == 8


def test_the_estimate_counts_the_steps_of_the_run(plain):
    from lorary.training.estimate.plan import estimate

    recipe = plain(16, **{"training.min_steps": 6, "training.epochs": 1, "training.batch_size": 8})
    assert estimate(recipe).cost.steps == 6


def test_a_rare_label_is_trained_on_however_many_rows_are_held_out(make_recipe, tmp_path):
    rows = [*tone_rows(40), *({"text": "debt", "label": "rare"},) * 2]
    recipe = make_recipe(
        **{"data.train": write_jsonl(tmp_path / "rare.jsonl", rows), "data.test": None, "data.test_size": 0.8}
    )
    data = load_data(recipe)
    assert {row.values["label"] for row in data.train} == {row.values["label"] for row in data.test} == set(data.labels)


def test_labels_keep_their_proportion_where_each_side_has_just_room_for_all():
    rows = tuple(Example({"label": label}, str(number)) for number, label in enumerate("abab"))
    notes: list[str] = []
    kept, held = split_rows(rows, 0.5, 0, notes.append)
    assert {row.values["label"] for row in kept} == {row.values["label"] for row in held} == {"a", "b"}
    assert notes == []


def test_no_more_contexts_are_held_out_than_make_the_rows_asked_for():
    rows = tuple(Example({"context": str(number // 2)}, str(number)) for number in range(16))
    kept, held = split_rows(rows, 0.25, 0, lambda line: None)
    assert (len(kept), len(held)) == (12, 4)
    assert not {row.values["context"] for row in kept} & {row.values["context"] for row in held}


def test_one_context_is_left_to_train_on():
    rows = tuple(Example({"context": "short" if number == 0 else "long"}, str(number)) for number in range(16))
    for seed in range(8):
        assert all(split_rows(rows, 0.5, seed, lambda line: None))
