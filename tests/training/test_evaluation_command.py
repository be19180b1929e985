"""``lorary eval`` on files that change, disks that are full, folders of data, and what it says beside its table."""

import json
import shutil
from pathlib import Path

import pytest

from lorary.adapters.backbone.sources import find_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.errors import ChangedFilesError
from lorary.training import evaluate, train
from lorary.training.evaluation.recipe import recipe_for
from runs import SHORT
from samples import tone_rows, write_jsonl
from tiny import make_adapter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory, recipe_in):
    """A classifier's registry, and its folder with ``test.jsonl``."""
    from lorary.hub import Registry

    folder = tmp_path_factory.mktemp("tiny")
    registry = Registry(folder / "registry.db")
    train(recipe_in(folder, **SHORT), registry)
    return registry, folder


def words(tiny, data="test.jsonl"):
    registry, folder = tiny
    return ["eval", "tiny", "--data", str(folder / data), "--registry", str(registry.path), "--device", "cpu"]


def test_a_folder_of_data_is_measured_on_its_test_split(tiny):
    registry, folder = tiny
    data = folder / "data"
    data.mkdir()
    shutil.copy(folder / "train.jsonl", data)
    shutil.copy(folder / "test.jsonl", data)
    settings = {"device": "cpu"}
    found = evaluate(["tiny"], str(data), registry, settings=settings)
    assert found.adapters[0].metrics == pytest.approx(registry.resolve("tiny").metrics["test"])
    assert found.adapters[0].places[0] == f"{data} (test), row 1"
    assert evaluate(["tiny"], str(data), registry, settings={**settings, "data.train_split": "train"}).rows == 40


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a disk that is always full")
def test_a_full_disk_takes_the_answers_but_not_the_metrics(tiny, capsys):
    assert main([*words(tiny), "--answers", "/dev/full", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out)["adapters"][0]["metrics"]
    assert "--answers /dev/full: can't be written (No space left on device)" in captured.err


def test_a_metric_that_the_rows_leave_undefined_is_told_of(tiny, tmp_path):
    from lorary.training.progress import Reporter

    registry, _ = tiny
    reporter, rows = Reporter(), [row for row in tone_rows(8) if row["label"] == "bad"]
    data = write_jsonl(tmp_path / "bad.jsonl", rows)
    found = evaluate(["tiny"], data, registry, settings={"device": "cpu"}, progress=reporter)
    assert "auc" not in found.adapters[0].metrics
    assert "no auc: none of the held-out rows has the label 'good'" in reporter.notices


def test_files_that_were_changed_are_not_measured_under_their_digest(tiny, tmp_path):
    from lorary.hub import Registry

    _, folder = tiny
    for name in ("registry.db", "registry.store"):
        copy = shutil.copytree if (folder / name).is_dir() else shutil.copy
        copy(folder / name, tmp_path / name)
    ours = Registry(tmp_path / "registry.db")
    manifest = ours.checkpoint(ours.resolve("tiny")).files["lorary.json"]
    manifest.chmod(0o644)
    manifest.write_text(manifest.read_text().replace('"max_length": 64', '"max_length": 32'))
    with pytest.raises(ChangedFilesError, match="the catalogue states the digest"):
        evaluate(["tiny"], str(folder / "test.jsonl"), ours, settings={"device": "cpu"})


def test_a_revision_is_that_of_the_base_that_the_adapter_names(tiny):
    from dataclasses import replace

    registry, folder = tiny
    source = find_checkpoint("tiny", registry)
    manifest = source.checkpoint.manifest
    recipe = {**manifest.provenance["recipe"], "revision": "v1"}
    manifest = replace(manifest, provenance={**manifest.provenance, "recipe": recipe})
    source = replace(source, checkpoint=replace(source.checkpoint, manifest=manifest))
    data = str(folder / "test.jsonl")
    assert recipe_for(source, data, {}).revision == "v1"
    assert recipe_for(source, data, {"base": manifest.base.id}).revision is None
    assert recipe_for(source, data, {}, ["base=org/other"]).revision is None


@pytest.mark.parametrize("named", [True, False])
def test_a_base_that_is_gone_is_said_to_be_the_adapter_s(bases, tmp_path, capsys, named):
    from lorary.hub import Registry

    foreign = make_adapter(Path(bases("bert")), tmp_path / "foreign", task="text-classification", labels=2)
    config = json.loads((foreign / "adapter_config.json").read_text())
    (foreign / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": "gone"}))
    Registry(tmp_path / "registry.db").add(foreign, name="foreign", domain="finance")
    data = write_jsonl(tmp_path / "rows.jsonl", [{"text": "profit rose", "label": "LABEL_0"}])
    asked = ["eval", "foreign", "--data", str(data), "--registry", str(tmp_path / "registry.db")]
    assert main([*asked, *(["--base", str(tmp_path / "gone")] if named else [])]) == 1
    hint = "(it is the base that the adapter names; --base says another)"
    assert (hint in capsys.readouterr().err) is not named
