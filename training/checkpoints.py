"""Checkpoints of a run, from which a run that was killed goes on.

The trainer writes them in its own format: the adapter as safetensors, the optimizer's and the generators' state as
torch files, which it reads back with ``weights_only=True``. They stay in the folder of their run and are removed with
it. A checkpoint counts only with the list of its files, which is written last: what a kill or a full disk cuts off has
none.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.files.store import hash_file, sync_folder
from lorary.hub.jsontext import load_json

_LIST = "complete.json"
_STATE = "trainer_state.json"
_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: the trainer's ``state`` after ``step`` steps, and the run's ``seconds`` until then."""

    folder: Path
    state: Mapping[str, Any]
    seconds: float

    @property
    def step(self) -> int:
        """Optimizer steps that are behind."""
        return int(self.state["global_step"])

    @property
    def total(self) -> int:
        """Optimizer steps of the whole run."""
        return int(self.state["max_steps"])

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch: this one where no validation rows decide."""
        step = self.state.get("best_global_step")
        return self.folder.with_name(f"checkpoint-{step}") if step else self.folder

    @property
    def ended(self) -> bool:
        """Was this one written after the last step, or after the one at which early stopping ended the run?"""
        control = self.state.get("stateful_callbacks", {}).get("TrainerControl", {})
        return self.step >= self.total or bool(control.get("args", {}).get("should_training_stop"))


def commit(folder: Path, seconds: float) -> None:
    """Make a checkpoint that the trainer has written count: its files reach the disk, then their list does.

    Raises:
        OSError: the disk is full; the checkpoint doesn't count.
    """
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        entry = hash_file(path)
        files[str(path.relative_to(folder))] = [entry.sha256, entry.size]
    write_json(folder / _LIST, {"format": _FORMAT, "seconds": round(seconds, 3), "files": files})
    sync_folder(folder.parent)


def latest(folder: Path) -> Checkpoint | None:
    """The newest checkpoint in a run's ``folder`` that is whole, with its best epoch's; None where there is none."""
    for path in sorted(folder.glob("checkpoint-*"), key=_step_of, reverse=True):
        checkpoint = _read(path)
        if checkpoint and (checkpoint.best == path or _read(checkpoint.best)):
            return checkpoint
    return None


def prune(folder: Path, keep: Collection[Path]) -> None:
    """Remove every checkpoint but those in ``keep``, the ones that don't count included."""
    for path in folder.glob("checkpoint-*"):
        if path not in keep:
            # The list goes first, so that a checkpoint half removed is none.
            (path / _LIST).unlink(missing_ok=True)
            shutil.rmtree(path, ignore_errors=True)


def write_json(path: Path, value: Any) -> None:
    """Write ``path`` in one step: it holds what it held, or all of ``value``, on the disk.

    Raises:
        OSError: the disk is full.
    """
    temporary = path.with_name(f"{path.name}.new")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


def _step_of(path: Path) -> int:
    number = path.name.rpartition("-")[2]
    return int(number) if number.isdecimal() else -1


def _read(folder: Path) -> Checkpoint | None:
    """A checkpoint all of whose files are as they were written; None for any other folder."""
    try:
        written = load_json((folder / _LIST).read_bytes())
        if written["format"] != _FORMAT:
            return None
        for name, (sha256, size) in written["files"].items():
            entry = hash_file(folder / name)
            if (entry.sha256, entry.size) != (sha256, size):
                return None
        # The trainer writes NaN and Infinity where a loss was one, which strict JSON hasn't.
        return Checkpoint(folder, json.loads((folder / _STATE).read_bytes()), float(written["seconds"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
