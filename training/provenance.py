"""How an adapter came to be: nothing of it belongs to the digest, and nothing names a user, a host or a folder."""

from __future__ import annotations

import importlib.metadata
import platform
import resource
import sys
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lorary.hub.provenance.base_files import base_files
from lorary.hub.provenance.curve import thinned
from lorary.hub.provenance.front_matter import read_terms
from lorary.hub.provenance.private import redact_text
from lorary.training.data.terms import data_terms
from lorary.training.prepare import Prepared
from lorary.training.progress import Reporter

if TYPE_CHECKING:
    from lorary.training.fitting.loop import Fitted

_PACKAGES = ("torch", "transformers", "peft", "trl", "datasets", "bitsandbytes", "lorary")


def provenance(
    prepared: Prepared,
    fitted: Fitted,
    seconds: float,
    estimate: Mapping[str, int] | None,
    reporter: Reporter,
    git: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """How the adapter came to be.

    Args:
        prepared: the run.
        fitted: what its training came to, in ``seconds``.
        seconds: those of the training alone.
        estimate: what was predicted for the run, where it could be.
        reporter: has the notices, and what the run's parts took.
        git: the state of the working folder when the run began.
    """
    device = next(prepared.model.parameters()).device
    parent, data = prepared.parent, prepared.recipe.data
    return {
        **({"from": parent.provenance(prepared.recipe.start)} if parent else {}),
        "data": dict(prepared.data.provenance),
        **_base_and_terms(prepared),
        **({"git": dict(git)} if git else {}),
        **prepared.task.figures(),
        "lengths": {part: dict(figures) for part, figures in prepared.lengths.items()},
        "seed": prepared.recipe.training.seed,
        "environment": environment(device),
        "steps": fitted.steps,
        "best_epoch": fitted.best_epoch,
        "loss": fitted.loss,
        "curve": [list(point) for point in thinned(fitted.curve)],
        "seconds": round(seconds, 3),
        "durations": reporter.durations(),
        "tokens_per_second": _speed(prepared, fitted),
        "peak_memory_bytes": peak_memory(device),
        **({"estimate": dict(estimate)} if estimate else {}),
        "notices": [
            redact_text(without_folders(line, data.train, data.test, data.validation)) for line in reporter.notices
        ],
    }


def _base_and_terms(prepared: Prepared) -> dict[str, Any]:
    """The base's files by their hashes, and under which licenses base and data are, as far as these say so."""
    base, data = prepared.base.files, data_terms(prepared.recipe)
    told = {"base": read_terms(Path(base) / "README.md").license if base else None, "data": data.license}
    return {
        "base": {"files": base_files(Path(base)) if base else {}},
        "licenses": {what: text for what, text in told.items() if text},
        "languages": list(data.languages),
    }


def _speed(prepared: Prepared, fitted: Fitted) -> float:
    """The rows' own tokens, without padding, that the run went through in a second of its training."""
    once = sum(len(feature["input_ids"]) for feature in prepared.train.features)
    epochs = max(entry["epoch"] for entry in fitted.history)
    return round(epochs * once / fitted.seconds, 1) if fitted.seconds else 0.0


def environment(device: torch.device) -> dict[str, Any]:
    """Versions and hardware, for provenance: nothing that names a user, a host or a folder."""
    return {
        "python": platform.python_version(),
        "packages": dict(package_versions()),
        "device": device_name(device),
    }


@cache
def package_versions() -> Mapping[str, str]:
    """The installed versions of the packages that a result depends on; a process goes on with those it began with."""
    return {name: importlib.metadata.version(name) for name in _installed(_PACKAGES)}


def device_name(device: torch.device) -> str:
    """The kind of device and its model, such as ``cuda (NVIDIA H100)``."""
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return f"{device.type} ({hardware})"


def _installed(names: Sequence[str]) -> list[str]:
    return [name for name in names if any(True for _ in importlib.metadata.distributions(name=name))]


def without_folders(line: str, *files: str | None) -> str:
    """A notice with the data files' names in place of their paths."""
    for path in files:
        if path and Path(path).expanduser().is_absolute():
            line = line.replace(path, Path(path).name)
    return line


def peak_memory(device: torch.device) -> int:
    """Bytes: the most that torch held on each GPU, added up, or that the whole process held in memory."""
    if device.type == "cuda":
        return sum(int(torch.cuda.max_memory_allocated(index)) for index in range(torch.cuda.device_count()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in kilobytes
