"""`lorary blend` and `lorary merge` on tiny models."""

import json
import sys

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub.cli.main import main
from lorary.hub.manifest import BaseIdentity, Manifest, Numerics
from tiny import make_adapter, make_base, task_class

ROW = [7, 8, 9, 10, 11]
LM = "text-generation"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A base, and adapters on it that carry its fingerprint."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("place")
    base = make_base("llama", place / "base")
    identity = Backbone.from_pretrained(str(base)).identity
    for seed, name in enumerate(("legal", "tone")):
        Manifest(task=LM, base=identity, domain="law").write(make_adapter(base, place / name, task=LM, seed=seed))
    return place


@pytest.fixture
def run(place, registry, capsys):
    """Run `lorary` in this process; expects the exit code and gives back its stdout, or stderr when it failed."""
    for name in ("legal", "tone"):
        registry.add(place / name, name=name)

    def run(*words, code=0):
        found = main([*map(str, words), "--registry", str(registry.path)])
        captured = capsys.readouterr()
        assert found == code, captured
        run.stderr = captured.err
        if code == 0:
            return captured.out
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        return line.removeprefix("lorary: error: ")

    return run


def test_a_blend_in_the_catalogue(place, registry, run):
    out = run("blend", "legal=0.7", "tone@1=-0.3", "--name", "both")
    assert out == "both@1 is in the catalogue (law, text-generation): 0.7 legal@1 + -0.3 tone@1\n"
    assert "cat of 0.7 legal@1 + -0.3 tone@1" in run("show", "both")
    assert "both@1" in run("show", "legal")
    backbone = Backbone.from_pretrained(str(place / "base"), registry=registry)
    for name in ("legal", "tone", "both"):
        backbone.load(name)
    backbone.blend({"legal": 0.7, "tone": -0.3}, "same")
    assert torch.equal(backbone.logits([ROW], "both")[0], backbone.logits([ROW], "same")[0])


def test_a_blend_in_a_folder(place, registry, run, tmp_path):
    settings = ["--combination", "dare_ties", "--density", "0.5", "--seed", "3", "--head", f"{place}/tone"]
    words = ["blend", "legal=1", f"{place}/tone=0.5", "--name", "both", *settings]
    told = json.loads(run(*words, "--output", tmp_path / "both", "--base", place / "base", "--json"))
    assert told["folder"] == str(tmp_path / "both")
    assert [version.name for version in registry.versions()] == ["legal", "tone"]
    loaded = Backbone.from_pretrained(str(place / "base")).load(tmp_path / "both")
    assert (loaded.digest, loaded.notes) == (told["digest"], ())
    provenance = json.loads((tmp_path / "both" / "lorary.json").read_text())["provenance"]
    assert [part["name"] for part in provenance["blend"]["adapters"]] == ["legal", "tone"]
    assert str(place) not in json.dumps(provenance)


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["legal"], 2, "'legal': expected an adapter and its weight, as in legal=0.7"),
        (["legal=much"], 2, "expected an adapter and its weight"),
        (["legal=1", "legal=1"], 2, "stands twice"),
        (["legal=inf"], 2, "the weight of legal is inf"),
        (["legal=1", "tune=1"], 1, "did you mean tone?"),
        (["legal=1", "--combination", "ties"], 2, "needs a density"),
        (["legal=1", "--head", "judge"], 2, "head='judge' is none of the blended adapters"),
        (["legal=1", "--base", "./nowhere"], 1, "./nowhere: no such folder"),
    ],
    ids=str,
)
def test_wrong_parts(registry, run, words, code, message):
    assert message in run("blend", *words, "--name", "both", code=code)
    assert [version.name for version in registry.versions()] == ["legal", "tone"]


def test_a_merged_model(place, run, tmp_path):
    out = run("merge", "legal", tmp_path / "model", "--base", place / "base")
    assert out.startswith(f"{tmp_path}/model: LlamaForCausalLM in float32; its logits differ from the adapter's by")
    assert run.stderr == ""
    backbone = Backbone.from_pretrained(str(place / "base"))
    backbone.load(place / "legal")
    with torch.no_grad():
        got = task_class(LM).from_pretrained(tmp_path / "model")(torch.tensor([ROW])).logits[0]
    torch.testing.assert_close(got, backbone.logits([ROW], "legal")[0], atol=1e-5, rtol=1e-5)
    assert "isn't empty" in run("merge", "legal", tmp_path / "model", code=1)


def test_an_adapter_trained_on_nf4_is_merged_into_nf4s_weights(place, run, tmp_path):
    adapter = make_adapter(place / "base", tmp_path / "qlora", task=LM)
    Manifest(task=LM, base=BaseIdentity(str(place / "base")), numerics=Numerics("nf4")).write(adapter)
    told = json.loads(run("merge", adapter, tmp_path / "model", "--json"))
    assert told["notes"] == []
    backbone = Backbone.from_pretrained(str(place / "base"), quantization="nf4")
    backbone.load(adapter)
    with torch.no_grad():
        got = task_class(LM).from_pretrained(tmp_path / "model")(torch.tensor([ROW])).logits[0]
    torch.testing.assert_close(got, backbone.logits([ROW], "qlora")[0], atol=1e-4, rtol=1e-4)
    run("merge", adapter, tmp_path / "other", "--quantization", "none")
    assert "note: trained on nf4 weights, merged into none ones" in run.stderr


def test_what_is_asked_before_the_base_is_loaded(run, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "lorary.adapters.backbone", None)
    assert "unknown dtype 'int3'" in run("merge", "legal", tmp_path / "model", "--dtype", "int3", code=2)
    assert "did you mean legal?" in run("merge", "regal", tmp_path / "model", code=1)
