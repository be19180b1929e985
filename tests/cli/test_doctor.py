"""`lorary doctor`: what it finds here, and what is amiss where something is broken on purpose."""

import json
import shutil
from collections import namedtuple

import pytest
import torch

from checkpoints import make_checkpoint
from lorary.adapters.engine import compatibility
from lorary.hub.cli import health
from lorary.hub.cli.main import main

DiskUsage = namedtuple("DiskUsage", "total used free")


@pytest.fixture
def doctor(capsys, monkeypatch):
    """Run `lorary doctor`, expect the exit code; gives back what it found by subject, the last of each."""

    def run(*words, code=0):
        capsys.readouterr()
        assert main(["doctor", "--json", *map(str, words)]) == code
        captured = capsys.readouterr()
        assert captured.err == ""
        findings = json.loads(captured.out)
        assert any(one["amiss"] for one in findings) is bool(code)
        return {one["subject"]: one for one in findings}

    monkeypatch.setattr(health, "driver_is_there", lambda: False)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: DiskUsage(2**40, 2**39, 2**39))
    return run


def test_what_is_found_here(doctor, registry, tmp_path):
    found = doctor("--registry", registry.path)
    assert found["registry"]["found"] == f"none at {registry.path} yet"
    registry.add(make_checkpoint(tmp_path / "a"), name="a")
    found = doctor("--registry", registry.path)
    assert found["registry"]["found"] == f"{registry.path}: 1 version"
    assert found["nf4"]["found"] == found["int8"]["found"] == "works on cpu"
    assert torch.backends.cpu.get_cpu_capability() in found["processor"]["found"]
    assert found["extra serve"]["found"] == "installed"
    assert found["engine"]["found"].endswith("which it was tested with")
    assert found["Hub"]["found"] == "no token (offline, by HF_HUB_OFFLINE)"


def test_what_is_shown(capsys, monkeypatch, registry):
    monkeypatch.setattr(health, "unmet", lambda: ["peft is 0.1, lorary needs >=0.21.2"])
    assert main(["doctor", "--registry", str(registry.path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["what", "found"]
    assert "Hint: Hub: hf auth login, to push and to read what is private" in lines
    assert lines[-1] == "Amiss: packages: peft is 0.1, lorary needs >=0.21.2; pip install --upgrade lorary"


@pytest.mark.parametrize(("visible", "built", "code", "told"), [
    (None, None, 1, "is built for the CPU alone"), (None, "13.0", 1, "is built for CUDA 13.0, and can't use it"),
    ("", None, 0, "CUDA_VISIBLE_DEVICES hides it"),
])  # fmt: skip
def test_a_gpu_that_torch_cant_use(doctor, monkeypatch, visible, built, code, told):
    monkeypatch.setattr(health, "driver_is_there", lambda: True)
    monkeypatch.setattr(torch.version, "cuda", built)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = doctor(code=code)["GPU"]
    assert told in found["found"]
    assert found["mend"]


def test_layers_that_compute_something_else(doctor, monkeypatch):
    import bitsandbytes

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", lambda self, row: 3 * row)
    monkeypatch.setattr(bitsandbytes.nn.Linear8bitLt, "forward", lambda self, row: 1 / 0)
    found = doctor(code=1)
    assert "a product of it is off by" in found["nf4"]["found"]
    assert "ZeroDivisionError: division by zero" in found["int8"]["found"]


def test_a_transformers_that_the_engine_wasnt_tested_with(doctor, monkeypatch):
    monkeypatch.setattr(compatibility.transformers, "__version__", "5.99.0")
    assert "this is 5.99.0" in doctor()["engine"]["found"]
    monkeypatch.setattr(compatibility, "_SEAMS", {"transformers": ("Nothing",)})
    assert "transformers has no Nothing" in doctor(code=1)["engine"]["found"]


def test_a_registry_that_cant_be_read(doctor, tmp_path):
    (tmp_path / "broken.db").write_text("no registry " * 100)
    found = doctor("--registry", tmp_path / "broken.db", code=1)
    assert "isn't a SQLite file" in found["registry"]["found"]
    assert "Hub" in found


def test_a_disk_that_is_nearly_full(doctor, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: DiskUsage(2**40, 2**40 - 5_000_000, 5_000_000))
    found = doctor(code=1)
    assert found["its disk"]["found"].endswith("5 MB free")
    assert found["its disk"]["mend"].startswith("free some")


def test_a_check_that_cant_be_made_hides_no_other(doctor, monkeypatch):
    monkeypatch.setattr(health, "devices", lambda: 1 / 0)
    found = doctor(code=1)
    assert found["devices"]["found"] == "ZeroDivisionError: division by zero"
    assert "nf4" in found
