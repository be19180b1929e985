import os
import shutil
import tempfile
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from lorary.hub import Registry


@pytest.fixture
def add(registry, tmp_path):
    """Add a checkpoint of its own for each seed."""

    def add(seed=0, name="finance-tone", manifest=True, config=None, **options):
        folder = make_checkpoint(tmp_path / f"checkpoints/{seed}", seed=seed, manifest=manifest, **(config or {}))
        return registry.add(folder, name=name, **options)

    return add


@pytest.fixture
def add_base(registry, tmp_path):
    """Register a pretrained base, of a content of its own for each name."""

    def add_base(name):
        folder = tmp_path / "bases" / name
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(name.encode())
        facts = {"fingerprint": name[0] * 64, "architecture": "bert", "parameters": 7, "metrics": {}, "provenance": {}}
        return registry.bases.add(folder, name=name, **facts)

    return add_base


@pytest.fixture
def four(add, registry):
    """A registry of four versions of one name."""
    for seed in range(4):
        add(seed=seed)
    return registry


@pytest.fixture
def ann(hub, monkeypatch):
    """Ann is logged in."""
    hub.users["hf_ann"] = "ann"
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    return hub


@pytest.fixture
def elsewhere(tmp_path):
    """The registry of another machine."""
    return Registry(tmp_path / "elsewhere" / "registry.db")


@pytest.fixture
def open_folder():
    """A folder whose parents everybody may enter, unlike pytest's own, and what is made in it."""
    folder = Path(tempfile.mkdtemp(prefix="lorary-tests-"))
    folder.chmod(0o755)
    usual = os.umask(0o022)
    yield folder
    os.umask(usual)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o755)
    shutil.rmtree(folder)
