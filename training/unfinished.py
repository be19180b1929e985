"""The folder of a run that isn't finished, ``<run>.incomplete``: its recipe, its checkpoints, its files as they come.

It stands beside the folder that the run will have, holds all that is needed to go on with a run that was killed, and is
removed when the adapter, or the base, is in the catalogue. One process at a time works in it.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import IO, Any, TypeVar

from lorary.hub.errors import RecipeError, TrainingError
from lorary.hub.files.store import sync_folder
from lorary.hub.registry import Registry
from lorary.hub.registry_path import suggested
from lorary.training.checkpoints import Checkpoint, latest, write_json
from lorary.training.pretraining.recipe import PretrainRecipe
from lorary.training.recipe import Recipe
from lorary.training.recipe.place import INCOMPLETE
from lorary.training.recipe.raw import shown
from lorary.training.run_facts import Check, read_facts, read_metrics, read_part
from lorary.training.run_lock import LOCK, holder_of, lock_folder, lock_leftover
from lorary.training.save import RUNS, writing

AnyRecipe = Recipe | PretrainRecipe
Kind = TypeVar("Kind", Recipe, PretrainRecipe)

_RECIPE, _RESULT = "recipe.yaml", "result.json"
_PARTS = frozenset({LOCK, _RECIPE, _RESULT, "checkpoints", "adapter", "parts", "tokenizer", "base"})
"""What there may be in the folder, beside where it is written down what the run is."""

# What a run's weights don't depend on, so that it may differ when the run goes on.
_FREE = frozenset({"output", "tags", "alias", "training.checkpoint_steps"})


class Unfinished:
    """A run's folder while it isn't finished, claimed by this process until :meth:`release`.

    Attributes:
        final: the folder that the run will have.
        written: where it is written down what the run is, beside its recipe.
        checkpoints: where its checkpoints are.
        files: where the adapter is written before it gets its place.
        parts: where several runs are compared, what those that are done came to.
        claimed: has this process claimed it, now or before?
        begun: was the run in it begun by this process?
        command: the words that go on with it, after ``lorary``.
    """

    def __init__(self, final: Path, command: str = "train") -> None:
        self.final, self.command = final, command
        self.folder = final.with_name(final.name + INCOMPLETE)
        self.written = self.folder / "run.json"
        self.checkpoints = self.folder / "checkpoints"
        self.files = self.folder / "adapter"
        self.parts = self.folder / "parts"
        self._lock: IO[Any] | None = None
        self._made: list[Path] = []  # folders around it that weren't there, the innermost first
        self.claimed = self.begun = False

    def claim(self) -> None:
        """Take the folder for this process, made if it isn't there.

        Raises:
            TrainingError: another process works in it, it can't be made, or it holds what no run has put there.
        """
        with writing(self.final):
            if self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / LOCK).is_file():
                raise TrainingError(
                    f"{self.folder}: holds files that aren't a run's; name another output, or move them away"
                )
            self._made = [parent for parent in self.folder.parents if not parent.exists()]
            try:
                self._lock = lock_folder(self.folder)
            except BlockingIOError as error:
                who = holder_of(self.folder)
                raise TrainingError(f"{self.final}: is being trained by {who}; wait for it, or stop it") from error
        self.claimed = True

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def clear(self) -> None:
        """Remove what a run has left that was killed before it was written down, or while its folder was removed."""
        if self.written.exists() or not {path.name for path in self.folder.iterdir()} <= _PARTS:
            return
        with lock_leftover(self.folder) or nullcontext() as lock:
            if lock is not None and not self.written.exists():  # else it has just begun
                self.discard()

    def begin(self, recipe: AnyRecipe, facts: Mapping[str, Any]) -> None:
        """Empty the folder of what an earlier run may have left, and write down what this one is."""
        self.begun = True
        for path in self.folder.iterdir():
            if path.name == LOCK:
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
        # Without the folder, which will be there when the files are in place but not registered yet.
        text = recipe.model_copy(update={"output": None}).given()
        (self.folder / _RECIPE).write_text(text, encoding="utf-8")
        write_json(self.written, facts)

    def note_fact(self, key: str, value: Any) -> None:
        """Write down another fact that must be the same when the run goes on."""
        write_json(self.written, {**self.facts(), key: value})

    def facts(self) -> dict[str, Any]:
        """What was written down of the run. Raises TrainingError where it isn't what runs write down."""
        return read_facts(self.written)

    @property
    def resumable(self) -> bool:
        """Is there a run to go on with, whether or not it has come to a checkpoint?"""
        return self.written.is_file() and (self.folder / _RECIPE).is_file()

    def demand_resumable(self) -> None:
        """Nothing, where there is something to go on with. Raises TrainingError where there isn't."""
        if not self.resumable:
            raise TrainingError(f"{self.folder}: no such unfinished run; leave --resume out to start one")

    @property
    def begun_by(self) -> str:
        """The command whose run is in the folder; this one's own where none is.

        Raises:
            TrainingError: as :meth:`facts`.
        """
        return str(self.facts()["command"]) if self.resumable else self.command

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint; where several runs are compared, each has a folder of its own there."""
        if own := latest(self.checkpoints):
            return own
        runs = sorted((path for path in self.checkpoints.glob("*/")), key=lambda path: -path.stat().st_mtime)
        return next((checkpoint for path in runs if (checkpoint := latest(path))), None)

    def recipe(self, kind: type[Kind]) -> Kind:
        """The recipe that the run was started with.

        Raises:
            RecipeError: it can't be read any more, or names files that aren't there.
        """
        return kind.load(self.folder / _RECIPE)

    def like(self, recipe: AnyRecipe) -> AnyRecipe:
        """The recipe that the run was started with, read as one of the kind of ``recipe``. Raises as :meth:`recipe`."""
        return self.recipe(Recipe) if isinstance(recipe, Recipe) else self.recipe(PretrainRecipe)

    def differences(self, recipe: AnyRecipe) -> list[str]:
        """What ``recipe`` has otherwise than the run, setting by setting, where it counts."""
        mine, theirs = (_flat(one.model_dump(mode="json", by_alias=True)) for one in (self.like(recipe), recipe))
        return [
            f"{key}: {shown(mine.get(key))} in the run, {shown(theirs.get(key))} now"
            for key in sorted(mine.keys() | theirs.keys())
            if mine.get(key) != theirs.get(key) and key not in _FREE
        ]

    def part(
        self, title: str, expected: Mapping[str, Check], since: Mapping[str, Check] | None = None
    ) -> dict[str, Any] | None:
        """What was kept under a title; None where nothing was.

        Raises:
            TrainingError: it isn't what is ``expected`` and comes ``since``, as :func:`read_part` has it.
        """
        path = self.parts / f"{title}.json"
        return read_part(path, expected, since) if path.is_file() else None

    def keep_part(self, title: str, value: Any) -> None:
        """Keep a part's result, as JSON, for when the run goes on. Raises OSError where the disk is full."""
        self.parts.mkdir(exist_ok=True)
        write_json(self.parts / f"{title}.json", value)

    def new_files(self) -> Path:
        """An empty place to write the adapter into: a killed run may have left half of one there."""
        shutil.rmtree(self.files, ignore_errors=True)
        return self.files

    def complete(self, metrics: Mapping[str, Mapping[str, float]]) -> None:
        """Give the written adapter its place, in one step; the metrics stay here until it is registered with them."""
        write_json(self.folder / _RESULT, metrics)
        sync_files(self.files)
        if self.final.is_dir():
            self.final.rmdir()  # an empty one, as checked before
        self.files.rename(self.final)
        sync_folder(self.final.parent)

    def result(self) -> dict[str, dict[str, float]] | None:
        """The metrics of a run all of whose files are in place; None before that.

        Raises:
            TrainingError: they can't be read.
        """
        # Where its own files still wait for the place, what is in it is somebody else's.
        if not (self.folder / _RESULT).is_file() or self.files.exists() or not _is_run(self.final):
            return None
        return read_metrics(self.folder / _RESULT)

    @property
    def going_on(self) -> str:
        """The command that goes on with the run, but for the registry that the adapter is to come into."""
        return shlex.join(["lorary", *self.begun_by.split(), str(self.final), "--resume"])

    def hint(self, registry: Registry) -> str | None:
        """What is kept and how to go on with it; None where nothing is kept."""
        command = suggested(self.going_on, registry.path)
        if self.result() is not None:
            return f"the trained adapter is in {self.final}; put it into the catalogue with: {command}"
        if self.parts.is_dir():
            return f"what is done is kept in {self.folder}; go on with: {command}"
        if checkpoint := self.checkpoint:
            processes = self.facts()["processes"] if self.resumable else 1
            if processes > 1:
                command = f"the same launch of {processes} processes, and --resume"
            return f"step {checkpoint.step} of {checkpoint.total} is kept in {self.folder}; go on with: {command}"
        return None

    def discard(self) -> None:
        """Remove the folder, and those around it that were made for it and hold nothing else."""
        with suppress(OSError):
            self.written.unlink()  # first: half a folder is no run to go on with
        shutil.rmtree(self.folder, ignore_errors=True)
        for folder in self._made or [path for path in self.folder.parents if path == RUNS]:
            try:
                folder.rmdir()
            except OSError:
                break


def sync_files(folder: Path) -> None:
    """Wait until all files of a folder are on the disk.

    Raises:
        OSError: it is full.
    """
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def run_of(path: Path) -> Path:
    """The folder that a run will have, from that or from the one that it has while it isn't finished."""
    return path.with_name(path.name.removesuffix(INCOMPLETE))


def clear_leftovers() -> None:
    """Remove what killed runs have left under ``runs/`` that can't be gone on with."""
    found: list[Path] = []
    with suppress(OSError):  # whoever removed the last one has removed the folder around it
        found = list(RUNS.glob(f"*{INCOMPLETE}"))
    for folder in found:
        with suppress(OSError):
            Unfinished(run_of(folder)).clear()


def find(recipe: AnyRecipe, command: str = "train") -> Unfinished:
    """The newest unfinished run of a recipe, at its ``output`` or under ``runs/``.

    Raises:
        TrainingError: there is none; the message says what differs where there is one of the same name.
    """
    if recipe.output is not None:
        run = Unfinished(Path(recipe.output).expanduser(), command)
        if _is_run(run.final) or run.resumable:
            return run
        raise TrainingError(f"{run.folder}: no such unfinished run; leave --resume out to start it")
    changed = None
    for folder in sorted(RUNS.glob(f"{recipe.name}-*{INCOMPLETE}"), reverse=True):
        run = Unfinished(run_of(folder), command)
        try:
            # Not every folder of the pattern is of this name: tiny-* has those of tiny-domain too.
            own = run.resumable and run.like(recipe).name == recipe.name and run.begun_by == command
            differences = run.differences(recipe) if own else None
        except RecipeError:
            continue
        except TrainingError as error:  # a run of this name that doesn't say what it is
            changed = changed or f"; {error}"
            continue
        if differences == []:
            return run
        if differences and changed is None:
            changed = f"; {folder} differs: {'; '.join(differences)}"
    raise TrainingError(f"no unfinished run of this recipe under runs/{changed or ''}; leave --resume out to start one")


def _is_run(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat
