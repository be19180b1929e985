"""Several recipes in one call: the base is loaded once, and each adapter is the one that it would be alone."""

from __future__ import annotations

import json
import re
import signal

import pytest
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from checkpoints import make_checkpoint
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.training import evaluate, train
from lorary.training.model import Shelf
from lorary.training.progress import BarReporter, Reporter
from samples import save_base, tone_rows, write_jsonl


class Phases(Reporter):
    def __init__(self):
        super().__init__()
        self.phases = []

    def phase(self, text):
        self.phases.append(text)


def _three_labels(tmp_path):
    rows = [{**row, "label": ("a", "b", "c")[index % 3]} for index, row in enumerate(tone_rows(24))]
    return write_jsonl(tmp_path / "three.jsonl", rows)


@pytest.mark.parametrize(("family", "quantization"), [("roberta", "nf4"), ("distilbert", "none")])
def test_a_shared_base_gives_the_adapters_of_single_runs(family, quantization, make_small, registry, tmp_path):
    shelf = Shelf()
    common = {"training.max_steps": 2, "quantization": quantization}
    three = {"data.train": _three_labels(tmp_path), "data.test": None, "training.seed": 7}
    for index, settings in enumerate(({}, three, {"method": "rslora"})):
        settings = {**common, **settings}
        reporter = Phases()
        shared = train(
            make_small(family=family, **settings, output=str(tmp_path / f"shared{index}")), registry, reporter,
            shelf=shelf,
        )  # fmt: skip
        assert ("loading the base" in reporter.phases) == (index == 0)
        if index == 0:
            continue  # it is alone
        alone = train(
            make_small(family=family, **settings, output=str(tmp_path / f"alone{index}")),
            Registry(tmp_path / f"{index}.db"),
        )
        assert shared.digest == alone.digest
        assert shared.metrics == alone.metrics


@pytest.fixture
def classifier(bases, tmp_path):
    """A tiny base that is a trained classifier of two labels: its files have the head."""
    model = AutoModelForSequenceClassification.from_pretrained(bases("roberta"), num_labels=2)
    return str(save_base(model, AutoTokenizer.from_pretrained(bases("roberta")), tmp_path / "classifier"))


@pytest.mark.parametrize("family", ["classifier", "modernbert"])
def test_a_head_that_the_bases_files_hold_is_begun_with_by_every_run(
    family, make_recipe, classifier, registry, tmp_path
):
    """It was left as memory without values from the second run on; a part of it, in ModernBERT."""
    shelf, settings = Shelf(), {"training.max_steps": 2}
    settings |= {"base": classifier} if family == "classifier" else {"family": family}
    for seed in (1, 2):
        reporter, own = Phases(), {"training.seed": seed, "output": str(tmp_path / f"shared{seed}")}
        shared = train(make_recipe(**settings, **own), registry, reporter, shelf=shelf)
    assert "loading the base" not in reporter.phases
    own["output"] = str(tmp_path / "alone")
    alone = train(make_recipe(**settings, **own), Registry(tmp_path / "alone.db"))
    assert (shared.digest, shared.metrics) == (alone.digest, alone.metrics)


def test_a_base_that_is_a_classifier_of_other_labels(make_recipe, classifier, registry, tmp_path):
    """Its head is drawn anew for three labels, and read from its files again for two."""
    shelf, settings = Shelf(), {"training.max_steps": 1, "base": classifier}
    three = {"data.train": _three_labels(tmp_path), "data.test": None}
    for index, (own, loaded) in enumerate([(three, True), ({"training.seed": 3, **three}, False), ({}, True)]):
        reporter = Phases()
        own = {**settings, **own, "name": f"n{index}"}
        shared = train(make_recipe(**own, output=str(tmp_path / f"s{index}")), registry, reporter, shelf=shelf)
        alone = train(make_recipe(**own, output=str(tmp_path / f"a{index}")), Registry(tmp_path / f"{index}.db"))
        assert (shared.digest, shared.metrics) == (alone.digest, alone.metrics)
        assert ("loading the base" in reporter.phases) == loaded
        told = [line for line in reporter.notices if "has another shape" in line]
        assert len(told) == (1 if own.get("data.train") else 0)
    found = evaluate(["n0@1", "n1@1"], three["data.train"], registry, settings={"device": "cpu"})
    assert [adapter.metrics.keys() for adapter in found.adapters] == [shared.metrics["test"].keys()] * 2


def test_the_dropout_of_a_head_is_that_of_its_own_recipe(make_small, registry, tmp_path):
    """A head that went from hand to hand had the first recipe's in every run."""
    shelf, settings = Shelf(), {"training.max_steps": 1, "lora.dropout": 0.0}
    for index, own in enumerate([{"training.classifier_dropout": 0.5}, {}]):
        shared = train(make_small(rows=8, **settings, **own, output=str(tmp_path / f"s{index}")), registry, shelf=shelf)
    alone = train(make_small(rows=8, **settings, output=str(tmp_path / "alone")), Registry(tmp_path / "alone.db"))
    assert shared.digest == alone.digest


def test_a_language_model_is_shared_too(make_small, registry, tmp_path):
    shelf = Shelf()
    for index in range(2):
        settings = {"training.max_steps": 2, "training.seed": index, "output": str(tmp_path / f"s{index}")}
        shared = train(make_small("text-generation", **settings), registry, shelf=shelf)
    settings["output"] = str(tmp_path / "alone")
    alone = train(make_small("text-generation", **settings), Registry(tmp_path / "alone.db"))
    assert alone.digest == shared.digest


def test_another_base_task_or_quantization_is_loaded(make_small, registry, tmp_path):
    shelf = Shelf()
    for index, (task, settings) in enumerate(
        [
            ("text-classification", {}),
            ("text-classification", {"quantization": "int8"}),
            ("token-classification", {}),
            ("text-classification", {"name": "other"}),
        ]
    ):
        reporter = Phases()
        recipe = make_small(
            task,
            rows=8,
            **{"name": f"n{index}", "training.max_steps": 1, "output": str(tmp_path / f"o{index}"), **settings},
        )
        train(recipe, registry, reporter, shelf=shelf)
        assert "loading the base" in reporter.phases


def _write(make_recipe, tmp_path, name, **settings):
    recipe = make_recipe(
        rows=8, **{"name": name, "training.max_steps": 1, "output": str(tmp_path / f"{name}-out"), **settings}
    )
    file = tmp_path / f"{name}.yaml"
    file.write_text(recipe.to_yaml())
    return str(file)


def test_the_command_trains_all_and_says_which_failed(make_small, tmp_path, capsys):
    one, two = (_write(make_small, tmp_path, name) for name in ("one", "two"))
    (tmp_path / "bad.jsonl").write_text('{"text": "x", "label": ""}\n')
    bad = _write(make_small, tmp_path, "bad")
    text = (tmp_path / "bad.yaml").read_text()
    (tmp_path / "bad.yaml").write_text(text.replace("train.jsonl", "bad.jsonl"))
    registry = ["--registry", str(tmp_path / "r.db")]
    assert main(["train", one, bad, two, *registry, "--json"]) == 1
    told = capsys.readouterr()
    assert [version["reference"] for version in json.loads(told.out)] == ["one@1", "two@1"]
    assert "error: bad: " in told.err
    assert {version.name for version in Registry(tmp_path / "r.db").versions()} == {"one", "two"}


def test_when_one_is_stopped_those_that_are_done_are_told(make_small, tmp_path, capsys, monkeypatch):
    files = [_write(make_small, tmp_path, name) for name in ("one", "two", "three")]
    phase = BarReporter.phase

    def stops(self, text):
        phase(self, text)
        if text == "reading the data" and (tmp_path / "one-out").exists():
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(BarReporter, "phase", stops)
    assert main(["train", *files, "--registry", str(tmp_path / "r.db"), "--json"]) == 130
    told = capsys.readouterr()
    assert [version["reference"] for version in json.loads(told.out)] == ["one@1"]
    assert "error: two: stopped, nothing was registered; no files are left\n" in told.err
    assert "not begun: three\n" in told.err


def test_mistakes_of_all_recipes_are_told_before_anything_runs(make_recipe, tmp_path, capsys):
    one = _write(make_recipe, tmp_path, "one")
    for name in ("x", "y"):
        (tmp_path / f"{name}.yaml").write_text(f"name: {name}\nepoch: 3\n")
    files = [one, str(tmp_path / "x.yaml"), str(tmp_path / "y.yaml")]
    assert main(["train", *files, "--registry", str(tmp_path / "r.db")]) == 2
    told = capsys.readouterr().err
    assert "x.yaml: " in told
    assert "y.yaml: " in told
    assert not (tmp_path / "r.db").exists()
    assert main(["train", one, one, "--name", "same"]) == 2
    assert main(["train", one, one, "--resume"]) == 2


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output": "same"}, "output: 'same' is that of .*one.yaml too; name another folder"),
        ({"output": "x/../same"}, "output: 'x/../same' is that of .*one.yaml too"),
        ({"name": "one", "domain": "law"}, "'one' is in .*one.yaml with the domain 'finance', here with 'law'"),
        ({"name": "known"}, "'known' is in .* with the domain 'legal', the recipe says 'finance'"),
    ],
)
def test_what_would_stand_in_each_others_way_is_told_before_anything_runs(
    changes, said, make_recipe, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lorary.training.run.load_data", lambda *args: pytest.fail("a run was begun"))
    registry = Registry(tmp_path / "r.db")
    registry.add(make_checkpoint(tmp_path / "known", manifest=False), name="known", domain="legal")
    for name, own in (("one", {}), ("two", changes)):
        recipe = make_recipe(**{"name": name, "output": "same" if "output" in changes else None, **own})
        (tmp_path / f"{name}.yaml").write_text(recipe.to_yaml())
    assert main(["train", "one.yaml", "two.yaml", "--registry", str(registry.path)]) == 2
    told = capsys.readouterr().err
    assert re.search(f"two.yaml: {said}", told)
    assert "1 problem" in told
