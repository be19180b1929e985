"""``lorary verify --load``: catalogued versions through the loader, base by base."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import pytest

from lorary.adapters import Backbone
from lorary.adapters.proving.golden import condense, write_golden
from lorary.adapters.proving.verification import verify_by_loading
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.manifest import BaseIdentity, Manifest, Numerics
from tiny import make_adapter
from variants import change

ROWS = ((7, 8, 9), (10, 11))
TASK = "text-classification"


@pytest.fixture(scope="module")
def backbones(bases):
    return {family: Backbone.from_pretrained(str(bases(family))) for family in ("bert", "distilbert")}


@pytest.fixture
def registry(tmp_path):
    return Registry(tmp_path / "registry.db")


@pytest.fixture
def add(bases, backbones, registry, tmp_path):
    """Register an adapter with golden logits of a backbone (``on``); ``altered`` changes its folder before that."""

    def add(name, family="bert", seed=1, altered=None, on=None, **fields):
        folder = make_adapter(bases(family), tmp_path / name, task=TASK, seed=seed)
        backbone = on or backbones[family]
        backbone.load(folder, name)
        manifest = Manifest(
            task=TASK,
            base=backbone.identity,
            domain="finance",
            labels=("a", "b", "c"),
            numerics=backbone.numerics,
            golden_rows=ROWS,
        )
        write_golden(folder, [condense(TASK, row) for row in backbone.logits(ROWS, name)])
        backbone.unload(name)
        replace(manifest, **fields).write(folder)
        if altered:
            altered(folder)
        return registry.add(folder, name=name)

    return add


def silence(tensors):
    for key, tensor in tensors.items():
        if "lora_B" in key:
            tensor.zero_()


def found(registry, **options):
    return {
        (finding.reference, finding.level): finding.message
        for finding in verify_by_loading(registry, registry.versions(), **options)
    }


def test_sound_versions_on_two_bases_give_no_finding(add, registry, monkeypatch):
    for name, family, seed in (("one", "bert", 1), ("two", "bert", 2), ("three", "distilbert", 3)):
        add(name, family, seed)
    opened = []
    usual = Backbone.from_pretrained
    monkeypatch.setattr(Backbone, "from_pretrained", lambda base, **more: opened.append(base) or usual(base, **more))
    assert found(registry) == {}
    assert len(opened) == 2  # one for each base


@pytest.mark.parametrize("arithmetic", [{"quantization": "nf4"}, {"dtype": "bfloat16"}], ids=str)
def test_each_is_judged_in_the_arithmetic_of_its_training(add, bases, registry, arithmetic):
    add("usual", seed=1)
    add("other", seed=2, on=Backbone.from_pretrained(str(bases("bert")), **arithmetic))
    assert found(registry) == {}  # else a note would say that they are compared, not judged


def test_a_version_that_answers_otherwise_is_an_error(add, registry, tmp_path, capsys):
    def strengthen(tensors):
        for key, tensor in tensors.items():
            if "lora_B" in key:
                tensor.mul_(1.5)

    add("sound")
    add("stronger", altered=lambda folder: change(folder, strengthen))
    add("silent", altered=lambda folder: change(folder, silence))
    findings = found(registry)
    assert set(findings) == {("stronger@1", "error"), ("silent@1", "error")}
    assert "golden row 0: logits differ" in findings["stronger@1", "error"]
    assert findings["silent@1", "error"].startswith("doesn't load: ")
    words = ["--registry", str(registry.path)]
    assert main(["verify", *words]) == 0  # the files are what was registered
    assert main(["verify", "--load", *words]) == 1
    assert "3 version(s) verified, 2 error(s)" in capsys.readouterr().out


def test_what_can_not_be_judged_is_a_note(add, bases, registry, tmp_path, capsys):
    gone = BaseIdentity(str(tmp_path / "no-base"))
    replaced = replace(Backbone.from_pretrained(str(bases("distilbert"))).identity, id=str(bases("bert")))
    add("gone", seed=1, base=gone)
    add("replaced", seed=2, base=replaced)
    add("elsewhere", seed=3, numerics=Numerics("none", "bfloat16", "cuda"))
    add("foreign", seed=4, altered=lambda folder: [(folder / name).unlink() for name in ("golden.safetensors",)])
    findings = found(registry)
    assert {level for _, level in findings} == {"note"}
    assert "no such folder" in findings["gone@1", "note"]
    assert "trained on" in findings["replaced@1", "note"]
    assert "not judged (cosine of the effect 1.0000)" in findings["elsewhere@1", "note"]
    assert findings["foreign@1", "note"] == "loads and takes effect; carries no golden logits"
    assert main(["verify", "--load", "--registry", str(registry.path)]) == 0
    assert "4 version(s) verified, 0 error(s)" in capsys.readouterr().out


def test_another_place_of_the_base(add, bases, registry, tmp_path):
    add("moved", base=replace(Backbone.from_pretrained(str(bases("bert"))).identity, id="org/nowhere"))
    assert set(found(registry)) == {("moved@1", "note")}
    assert found(registry, base=str(bases("bert"))) == {}


def test_a_damaged_row_hides_no_other_version(add, registry, capsys):
    add("a-sound")
    add("damaged")
    add("silent", altered=lambda folder: change(folder, silence))
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE versions SET parameters = 'many' WHERE id = 2")
    assert main(["verify", "--load", "--registry", str(registry.path)]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.startswith("error: damaged@1: the registry's rows are damaged")
    assert second.startswith("error: silent@1: doesn't load: ")
    assert last == "3 version(s) verified, 2 error(s)"


@pytest.mark.parametrize("words", [(), ("damaged",)])
def test_a_damaged_row_is_told_though_nothing_can_be_loaded(add, registry, capsys, words):
    add("damaged")
    with closing(sqlite3.connect(registry.path)) as db, db:
        db.execute("UPDATE versions SET parameters = 'many'")
    assert main(["verify", *words, "--load", "--registry", str(registry.path)]) == 1
    told, last = capsys.readouterr().out.splitlines()
    assert told.startswith("error: damaged@1: the registry's rows are damaged")
    assert last == "1 version(s) verified, 1 error(s)"


def test_damaged_files_are_told_once(add, registry, capsys):
    version = add("damaged")
    weights = registry.checkpoint(version).files["adapter_model.safetensors"]
    weights.chmod(0o644)
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert main(["verify", "--load", "--registry", str(registry.path)]) == 1
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("error")]) == 1
    assert main(["verify", "--base", "x", "--registry", str(registry.path)]) == 2
