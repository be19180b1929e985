"""The report of a run: its figures are the run's own, and nothing in it acts."""

from __future__ import annotations

import base64
import json
import math
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lorary.hub.cli.main import main
from lorary.hub.errors import CheckpointError, RecipeError, TrainingError
from lorary.hub.registry import Registry
from lorary.hub.values import Version
from lorary.training import Recipe, train
from lorary.training.data import load_data
from lorary.training.fitting.loop import Fitted
from lorary.training.one_run import run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.report.build import build_report
from lorary.training.report.confusion import MOST_LABELS, count_labels
from lorary.training.report.content import Report, read_report
from lorary.training.report.page import page
from lorary.training.report.spans import count_spans
from samples import tone_rows, write_jsonl

FILES = {"report.json", "report.html", "curves.png", "mistakes.png"}


@dataclass(frozen=True)
class Reported:
    """A run, which no test changes."""

    version: Version
    recipe: Recipe
    registry: Registry
    folder: Path

    @property
    def report(self) -> Report:
        return read_report(self.folder / "report.json", "out")


@pytest.fixture(scope="module")
def reported(recipe_in, tmp_path_factory):
    root = tmp_path_factory.mktemp("reported")
    settings = {"report.write": True, "training.early_stopping": 2, "report.rows": 5, "data.validation_size": 0.1}
    recipe, registry = recipe_in(root, rows=100, held=20, **settings), Registry(root / "registry.db")
    return Reported(train(recipe, registry), recipe, registry, root / "out")


def test_a_run_leaves_its_report_and_the_catalogue_keeps_it(reported):
    version, report = reported.version, reported.report
    assert {path.name for path in reported.folder.iterdir()} >= FILES
    assert set(version.files) >= FILES
    assert reported.registry.verify() == []
    assert report.metrics == version.metrics
    assert [point.step for point in report.points] == list(range(1, version.manifest.provenance["steps"] + 1))
    assert report.points[0].loss == version.manifest.provenance["curve"][0][1]
    assert max(point.learning_rate for point in report.points) == pytest.approx(0.01)
    assert len(report.validations) == 2
    assert all(0 <= point.metric <= 1 for point in report.validations)
    html = (reported.folder / "report.html").read_text()
    for name in ("curves.png", "mistakes.png"):
        png = (reported.folder / name).read_bytes()
        assert png.startswith(b"\x89PNG")
        assert base64.b64encode(png).decode() in html


def test_the_worst_rows_are_those_with_the_highest_loss_by_peft(reported):
    version, recipe, report = reported.version, reported.recipe, reported.report
    import transformers
    from peft import PeftModel

    base = transformers.AutoModelForSequenceClassification.from_pretrained(recipe.base, num_labels=2)
    model = PeftModel.from_pretrained(base, reported.folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(recipe.base)
    labels = list(version.manifest.labels)
    losses = {}
    for place, row in enumerate(map(json.loads, Path(recipe.data.test).read_text().splitlines()), start=1):
        with torch.no_grad():
            logits = model(**tokenizer(row["text"], return_tensors="pt")).logits
        losses[f"test.jsonl, row {place}"] = float(
            torch.nn.functional.cross_entropy(logits, torch.tensor([labels.index(row["label"])]))
        )
    wrong_first = [row for row in report.worst if not row.right]
    assert len(report.worst) == 5
    assert report.ranked == 20
    assert wrong_first == list(report.worst)[: len(wrong_first)]
    expected = sorted(losses, key=losses.get, reverse=True)[:5]
    assert [row.place for row in report.worst] == expected
    for row in report.worst:
        assert row.loss == pytest.approx(losses[row.place], abs=1e-4)


def test_the_confusion_is_scikit_learns():
    from sklearn.metrics import confusion_matrix

    golds, outcomes = list("aabbcca"), list("abbbcab")
    found = count_labels("abc", golds, outcomes)
    assert [list(row) for row in found.counts] == confusion_matrix(golds, outcomes, labels=list("abc")).tolist()


def test_of_many_labels_the_confused_ones_are_shown():
    labels = [f"l{index}" for index in range(100)]
    golds, outcomes = [*labels, "l70", "l71"], [*labels, "l71", "l70"]
    found = count_labels(labels, golds, outcomes)
    assert len(found.rows) <= MOST_LABELS
    assert {"l70", "l71"} <= set(found.rows)


def test_nothing_is_drawn_where_there_is_nothing_to_count(make_small, registry, tmp_path):
    labels = [f"l{index}" for index in range(MOST_LABELS + 1)]
    assert count_labels(labels, labels, labels) is None
    rows = [{"tokens": ["rose", "bank"], "tags": ["O", "B-ORG"]}, *({"tokens": ["rose"], "tags": ["O"]},) * 30]
    files = {"data.train": write_jsonl(tmp_path / "rows.jsonl", rows)}
    files["data.test"] = write_jsonl(tmp_path / "without.jsonl", rows[1:9])
    version = train(make_small("token-classification", **files, **{"report.write": True}), registry)
    assert version.metrics["test"]["accuracy"] == 1
    assert read_report(tmp_path / "out" / "report.json", "tiny").mistakes is None


def test_spans_are_counted_by_what_became_of_them():
    golds = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-LOC", "O", "B-PER"]]
    tags = [["B-PER", "I-PER", "O", "B-PER"], ["B-LOC", "I-LOC", "O", "O"]]
    found = count_spans(golds, tags)
    by_type = {found.rows[i]: dict(zip(found.columns, found.counts[i], strict=True)) for i in range(len(found.rows))}
    assert by_type["PER"] == {"right": 1, "other type": 0, "other bounds": 0, "missed": 1, "invented": 0}
    assert by_type["LOC"] == {"right": 0, "other type": 1, "other bounds": 1, "missed": 0, "invented": 0}
    assert count_spans([["O"]], [["B-PER"]]).counts == ((0, 0, 0, 0, 1),)


@pytest.mark.parametrize("task", ["token-classification", "text-generation"])
def test_every_task_has_a_report(task, make_recipe, registry, tmp_path):
    train(make_recipe(task, rows=16, held=4, **{"report.write": True, "training.max_steps": 2}), registry)
    report = read_report(tmp_path / "out" / "report.json", "out")
    assert report.worst
    assert (report.mistakes is not None) == (task == "token-classification")
    assert "<img" in page(report)


def test_rows_can_be_left_out(make_recipe, registry, tmp_path):
    train(make_recipe(rows=16, held=4, **{"report.write": True, "report.rows": 0, "training.max_steps": 2}), registry)
    assert read_report(tmp_path / "out" / "report.json", "out").worst == ()


def test_nothing_of_a_row_or_a_name_acts_in_the_page(make_recipe, registry, tmp_path):
    evil = "<script>alert(1)</script> <img src=x onerror=alert(1)>"
    rows = [{**row, "text": f"{row['text']} {evil}"} for row in tone_rows(8)]
    recipe = make_recipe(
        rows=20,
        **{
            "report.write": True, "training.max_steps": 2, "training.max_length": 32, "tags": ["<b>"],
            "data.test": write_jsonl(tmp_path / "evil.jsonl", rows),
        },
    )  # fmt: skip
    train(recipe, registry)
    html = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "&lt;script&gt;alert" in html
    assert "<script" not in html
    assert "onerror=alert(1)&gt;" in html
    assert "default-src 'none'" in html
    assert str(tmp_path) not in html


def test_show_makes_the_page_from_the_data_not_from_the_page(reported, registry, tmp_path, capsys):
    folder = shutil.copytree(reported.folder, tmp_path / "out")
    (folder / "report.html").write_text("<script>bad()</script>")
    other = registry.add(folder, name="other", domain="finance", task="text-classification")
    assert (
        main(["show", other.reference, "--output", str(tmp_path / "page.html"), "--registry", str(registry.path)]) == 0
    )
    html = (tmp_path / "page.html").read_text()
    assert "bad()" not in html
    assert re.search(r"<h1>tiny</h1>", html)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "can't be used"),
        ("[]", "isn't a report"),
        ('{"format": 99}', "newer lorary"),
        ('{"name": 5}', "isn't a report"),
        ('{"a": 1, "a": 2}', "twice"),
    ],
)
def test_a_damaged_report_is_one_clear_error(text, said, tmp_path):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(CheckpointError, match=said):
        read_report(tmp_path / "report.json", "x@1")


def test_no_report_is_one_clear_error(make_recipe, registry, capsys):
    version = train(make_recipe(rows=16, held=4, **{"training.max_steps": 1}), registry)
    assert main(["show", version.reference, "--report", "--registry", str(registry.path)]) == 2
    assert "has no report" in capsys.readouterr().err


def test_a_tracker_that_is_not_installed_is_named_before_the_run(make_recipe, monkeypatch):
    monkeypatch.setattr("lorary.training.recipe.check.find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r"report.to: 'wandb' isn't installed"):
        make_recipe(**{"report.to": ["wandb"]})


WANDB = """
class errors:
    class Error(Exception):
        pass

def login():
    raise errors.Error("No API key configured. Use `wandb login` to log in.")
"""


def test_a_tracker_without_a_login_is_told_before_anything_is_trained(make_recipe, registry, tmp_path, monkeypatch):
    """The library is no part of the tests' environment: this one fails as 0.31 does."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "wandb.py").write_text(WANDB)
    monkeypatch.syspath_prepend(tmp_path / "site")
    recipe = make_recipe(rows=20, **{"report.to": ["wandb"]})
    try:
        with pytest.raises(TrainingError, match=r"report\.to: wandb .*No API key configured.*WANDB_MODE=offline"):
            train(recipe, registry)
    finally:
        sys.modules.pop("wandb", None)
    assert registry.versions() == []
    assert not Path(recipe.output).exists()


def test_a_report_needs_no_torch():
    import subprocess
    import sys

    code = "import sys; from lorary.training.report.page import page; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_the_report_is_the_same_read_back(reported):
    report = reported.report
    assert Report.model_validate(json.loads(json.dumps(report.model_dump(mode="json")))) == report


def drawn(**parts):
    told = {
        "name": "x", "domain": "x", "task": "text-classification", "base": "b", "method": "lora",
        "main_metric": "$\\bad$", "metrics": {},
        "points": [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}],
        "validations": [{"step": 2, "loss": 1.0, "metric": 0.5}],
    }  # fmt: skip
    return json.dumps({**told, **parts})


def table(names, count=1):
    return {"kind": "confusion", "rows": names, "columns": names, "counts": [[count] * len(names)] * len(names)}


def test_gradients_that_overflow_while_float16_finds_its_scale_are_left_out(make_small, tmp_path):
    """JSON has no number for them, and a report with one couldn't be read back."""
    recipe = make_small(**{"training.max_steps": 2})
    prepared = prepare(recipe, load_data(recipe), Reporter())
    finished = run(prepared, tmp_path / "checkpoints", Reporter())
    entries = ({"step": 1, "loss": 0.7, "grad_norm": math.inf}, {"step": 2, "loss": 0.6, "grad_norm": 2.0})
    fitted = Fitted(steps=2, loss=0.65, best_epoch=None, history=entries, seconds=1.0)
    report = build_report(prepared, fitted, finished.metrics, finished.outcomes, finished.trained.provenance)
    report.write(tmp_path)
    assert [point.gradient for point in read_report(tmp_path / "report.json", "tiny").points] == [None, 2.0]


def test_names_that_are_no_formulas_are_drawn(tmp_path):
    names = ["$\\frac{$", "x_$", "\x1b[31m\x00", "\u202ea", "l" * 100_000]
    (tmp_path / "report.json").write_text(drawn(mistakes=table(names)))
    assert "data:image/png" in page(read_report(tmp_path / "report.json", "x@1"))


@pytest.mark.parametrize(
    "parts",
    [
        {"points": [{"step": 1, "loss": 1e308}, {"step": 2, "loss": -1e308}]},
        {"points": [{"step": 10**20, "loss": 1.0}]},
        {"mistakes": table([])},
        {"mistakes": table([f"l{index}" for index in range(301)])},
        {"mistakes": table(["a"], 10**20)},
        {"mistakes": {"kind": "confusion", "rows": ["a", "b"], "columns": ["a"], "counts": [[1]]}},
    ],
    ids=lambda parts: str(parts)[:40],
)
def test_a_report_that_cant_be_drawn_is_one_clear_error(parts, tmp_path):
    (tmp_path / "report.json").write_text(drawn(**parts))
    with pytest.raises(CheckpointError, match=r"^x@1: report\.json can't be used"):
        read_report(tmp_path / "report.json", "x@1")
