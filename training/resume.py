"""Going on with a run that was stopped or killed: which one, and whether it is still the same run."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorary.hub.checkpoint import read_checkpoint
from lorary.hub.errors import LoraryError, TrainingError
from lorary.hub.manifest import BaseIdentity
from lorary.hub.registry import Registry
from lorary.hub.registry_path import suggested
from lorary.hub.values import Version
from lorary.training.progress import Reporter
from lorary.training.provenance import package_versions
from lorary.training.save import output_folder
from lorary.training.strategies.parent import Parent
from lorary.training.unfinished import AnyRecipe, Kind, Unfinished, clear_leftovers, find, run_of


def choose_run(recipe: AnyRecipe, resume: bool | str | Path, registry: Registry, command: str = "train") -> Unfinished:
    """The run to work on: a new one, the newest unfinished one of the recipe (True), or that of a folder.

    Args:
        command: the subcommand for runs of this kind.

    Raises:
        TrainingError: the new run's place is taken, there is no such unfinished run, or it is another command's.
    """
    clear_leftovers()
    if resume is False:
        place = Unfinished(Path(recipe.output).expanduser(), command) if recipe.output is not None else None
        if place and place.resumable and (hint := place.hint(registry)):
            raise TrainingError(f"an unfinished run is in its place: {hint}; or remove {place.folder}")
        return Unfinished(output_folder(recipe), command)
    found = find(recipe, command) if resume is True else Unfinished(run_of(Path(resume).expanduser()), command)
    return _own(found, registry)


def recipe_of(folder: Path, kind: type[Kind], registry: Registry, command: str = "train") -> Kind:
    """The recipe that the run in ``folder`` was started with; ``registry`` is the one to go on with.

    Raises:
        TrainingError: no run is there, it is finished and its recipe isn't needed any more, or another command's.
        RecipeError: it can't be read any more, or names files that aren't there.
    """
    clear_leftovers()
    run = Unfinished(run_of(folder), command)
    run.demand_resumable()
    return _own(run, registry).recipe(kind)


def _own(run: Unfinished, registry: Registry) -> Unfinished:
    """The run, where it is one of its command's: another's would go on as something else, and then be removed."""
    if (other := run.begun_by) != run.command:
        raise TrainingError(
            f"{run.final} is a run of `lorary {other}`; go on with: {suggested(run.going_on, registry.path)}"
        )
    return run


def registered_run(folder: Path, registry: Registry) -> Version | None:
    """The version of a finished run, None where ``folder`` has an unfinished one or none.

    Raises:
        TrainingError: it is finished, but isn't in this registry.
    """
    final = run_of(folder)
    if Unfinished(final).resumable:
        return None
    try:
        digest = read_checkpoint(final).digest
    except LoraryError:
        return None
    found = registry.with_digest(digest)
    if not found:
        command = suggested(shlex.join(["lorary", "import", str(final)]), registry.path)
        raise TrainingError(f"{final}: finished, but not in {registry.path}; put it there with: {command}")
    return found[-1]


def begin(
    run: Unfinished, recipe: AnyRecipe, data: Mapping[str, Any], parent: Parent | None, processes: int, **more: Any
) -> None:
    """Write down what a new run depends on, ``more`` by its names, in one step: a kill leaves all of it or no run."""
    facts = {"data": dict(data), "parent": _digest(parent), "processes": processes, "environment": _environment()}
    run.begin(recipe, {"command": run.command, **facts, **more})


def check_same(
    run: Unfinished, recipe: AnyRecipe, data: Mapping[str, Any], parent: Parent | None, processes: int,
    reporter: Reporter,
) -> None:  # fmt: skip
    """The recipe and the rows must be those that the run was started with; other versions of packages are told.

    Raises:
        TrainingError: something differs; the message says what.
    """
    changed = run.differences(recipe)
    facts = run.facts()
    if not changed and facts["data"] != dict(data):
        others = {key: part for key, part in data.items() if facts["data"].get(key) != part}
        # The files say it, rather than what was counted in them.
        names = [str(part["name"]) for part in others.values() if isinstance(part, Mapping) and "name" in part]
        changed = [f"the rows have changed ({', '.join(names or others)})"]
    if parent and not changed and facts["parent"] != _digest(parent):
        changed = [f"{parent.reference} is another version now"]
    if not changed and facts["processes"] != processes:
        changed = [f"{facts['processes']} processes in the run, {processes} now"]
    if changed:
        raise TrainingError(
            f"{run.final}: can't go on as it began, {'; '.join(changed)}. Put that back, or start anew without --resume"
        )
    before, now = facts["environment"], _environment()
    versions = [f"{name} {before.get(name)} -> {now.get(name)}" for name in now if before.get(name) != now[name]]
    if versions:
        reporter.note(f"begun with other versions, so the result may differ a little: {', '.join(versions)}")
    if run.checkpoint is None and not run.parts.is_dir():
        reporter.note(f"{run.folder} has no whole checkpoint, so the run begins at its first step")


def check_base(run: Unfinished, base: BaseIdentity) -> None:
    """The base must be the one that the run began with, wherever its files are now.

    Raises:
        TrainingError: it isn't.
    """
    before = run.facts().get("base")
    if before is None:
        run.note_fact("base", base.fingerprint)
    elif before != base.fingerprint:
        raise TrainingError(f"{run.final}: began on another base than {base.id} is now; start anew without --resume")


def _digest(parent: Parent | None) -> str | None:
    return parent.checkpoint.digest if parent else None


def _environment() -> dict[str, str]:
    return {"python": platform.python_version(), **package_versions()}
