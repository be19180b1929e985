"""Several recipes in one call of ``lorary train``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lorary.hub.cli.output import print_error, print_json, print_note, print_table, short_number, version_json
from lorary.hub.errors import (
    InterruptedRunError,
    LoraryError,
    ProblemsError,
    RecipeError,
    RegistryConflictError,
    UsageError,
)
from lorary.hub.metrics import headline
from lorary.hub.reference import normalise_domain

if TYPE_CHECKING:
    from lorary.hub.registry import Registry
    from lorary.training.recipe import Recipe


def train_each(
    files: Sequence[Path], overrides: Sequence[str], flags: Mapping[str, Any], registry: Registry, as_json: bool
) -> None:
    """Train recipe after recipe; a base that two in a row share is loaded once.

    Raises:
        RecipeError: every mistake of every recipe, and what can't stand side by side; nothing was trained.
        InterruptedRunError: a run was stopped, and those after it weren't begun; those before it are told of.
        typer.Exit: 1, when a run has failed; the others were trained.
    """
    recipes = _read(files, overrides, flags)
    from lorary.training.model import Shelf
    from lorary.training.progress import BarReporter
    from lorary.training.run import train

    _demand_rooms(files, recipes, registry)
    shelf, done, failed = Shelf(), [], 0
    stopped: InterruptedRunError | None = None
    for begun, recipe in enumerate(recipes, 1):
        try:
            with BarReporter(recipe.name) as reporter:
                version = train(recipe, registry, reporter, shelf=shelf)
            done.append((version, reporter.folder))
        except InterruptedRunError as error:
            stopped = error
            if later := ", ".join(other.name for other in recipes[begun:]):
                print_note(f"not begun: {later}", aside=True)
            break
        except LoraryError as error:
            failed += 1
            print_error(f"{recipe.name}: {str(error).splitlines()[0]}", *str(error).splitlines()[1:])
    if as_json:
        print_json([{**version_json(version), "folder": str(folder)} for version, folder in done])
    elif done:
        print_table([_row(version, folder) for version, folder in done])
    if stopped:
        raise stopped
    if failed:
        raise typer.Exit(1)


def _read(files: Sequence[Path], overrides: Sequence[str], flags: Mapping[str, Any]) -> list[Recipe]:
    from lorary.training.recipe import Recipe

    for flag in ("name", "output", "alias"):
        if flag in flags:
            raise UsageError(f"--{flag} would be the same for {len(files)} recipes; leave it to each of them")
    recipes: list[Recipe] = []
    problems: list[str] = []
    for file in files:
        try:
            recipes.append(Recipe.load(file, overrides, flags))
        except ProblemsError as error:
            problems += [f"{file}: {problem}" for problem in error.problems]
    problems += [
        f"{file}: strategy 'direct' trains nothing; run it alone"
        for file, recipe in zip(files, recipes, strict=False)
        if not problems and recipe.strategy == "direct"
    ]
    if problems:
        raise RecipeError(f"{len(files)} recipes", problems)
    return recipes


def _demand_rooms(files: Sequence[Path], recipes: Sequence[Recipe], registry: Registry) -> None:
    """Can all of the adapters have their folders and their names?

    Raises:
        RecipeError: some can't, because of the catalogue or of one another.
        RegistryError: the catalogue can't be written.
    """
    from lorary.training.run import demand_room

    problems: list[str] = []
    folders: dict[Path, Path] = {}
    named: dict[str, tuple[Path, Recipe]] = {}
    for file, recipe in zip(files, recipes, strict=True):
        try:
            demand_room(recipe, registry)
        except RegistryConflictError as error:
            problems.append(f"{file}: {error}")
        if recipe.output is not None:
            before = folders.setdefault(Path(recipe.output).expanduser().resolve(), file)
            if before is not file:
                problems.append(f"{file}: output: {recipe.output!r} is that of {before} too; name another folder")
        other, own = named.setdefault(recipe.name, (file, recipe))
        domains = normalise_domain(own.domain), normalise_domain(recipe.domain)
        for what, theirs, ours in (("domain", *domains), ("task", own.task, recipe.task)):
            if theirs != ours:
                problems.append(
                    f"{file}: {recipe.name!r} is in {other} with the {what} {theirs!r}, here with {ours!r}; choose "
                    "another name"
                )
    if problems:
        raise RecipeError(f"{len(files)} recipes", problems)


def _row(version: Any, folder: Path | None) -> dict[str, object]:
    name, value = headline(version.metrics["test"]) or ("", 0.0)
    before = version.metrics.get("untrained", {}).get(name)
    return {
        "adapter": version.reference,
        "task": version.task,
        "metric": name,
        "trained": short_number(value),
        "untrained": short_number(before) if before is not None else "",
        "files": str(folder),
    }
