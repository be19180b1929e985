"""``train``: from a recipe to a version in the catalogue."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.errors import (
    RegistryConflictError,
    RegistryError,
    UsageError,
)
from lorary.hub.pretrained_bases import bases_of
from lorary.hub.reference import normalise_domain
from lorary.hub.registry import Registry
from lorary.hub.values import Unreadable, Version
from lorary.training.attempt import attempt
from lorary.training.data import Examples, load_data
from lorary.training.distributed import ALONE, Group
from lorary.training.fitting.trackers import demand_login
from lorary.training.interrupt import Stops
from lorary.training.model import Base, Shelf
from lorary.training.one_run import Finished, check, run, save_run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter, quiet_libraries
from lorary.training.recipe import Recipe
from lorary.training.resume import begin, check_base, check_same, choose_run, registered_run
from lorary.training.save import (
    writing,
)
from lorary.training.strategies.parent import Parent, find_parent
from lorary.training.tasks import make_task
from lorary.training.tasks.base import Metrics
from lorary.training.unfinished import Unfinished


def train(
    recipe: Recipe,
    registry: Registry | None = None,
    progress: Reporter | None = None,
    resume: bool | str | Path = False,
    shelf: Shelf | None = None,
    group: Group = ALONE,
) -> Version:
    """Train an adapter, hold its saved files against the trained model, and register it.

    Args:
        recipe: from :meth:`Recipe.load` or :meth:`Recipe.from_flags`.
        registry: the catalogue to add it to; the default one unless given.
        progress: is told of phases, steps and notices.
        resume: go on with a run that was stopped: the newest of this recipe (True), or that of a folder. On the same
            machine the result is that of a run that wasn't stopped.
        shelf: keeps the base in memory for the next call that is given the same shelf, where it asks for the same base.
        group: the processes that train together; the others of them call :func:`take_part`.

    Returns:
        The version; the run's folder is named in the recipe or begins with ``runs/``.

    Raises:
        DataError: rows that can't be used, all of them by file and number; nothing was loaded or trained.
        BaseNotFoundError: the base can't be found or loaded.
        TrainingError: the run can't go on, or there is no such run to go on with; the message says what to change.
        GateError: the saved files don't give back what was trained; nothing was registered.
        RecipeError: the recipe contradicts the adapter that it starts from.
        UsageError: its strategy is ``direct``, which trains nothing (:func:`measure`).
        BaseMismatchError: that adapter was trained on another base.
        RegistryError: the catalogue can't take the adapter; known before the run where that can be known.
        InterruptedRunError: Ctrl-C, SIGTERM or SIGHUP; nothing was registered, and the message says how to go on.
    """
    if recipe.strategy == "direct":
        raise UsageError("strategy 'direct' trains nothing; lorary.training.measure(recipe) measures the base as it is")
    reporter = progress or Reporter()
    registry = registry or Registry()
    demand_room(recipe, registry)
    unfinished = choose_run(recipe, resume, registry)
    if resume is not False and (version := registered_run(unfinished.final, registry)):
        reporter.note(f"{unfinished.final} is finished already: it is {version.reference}")
        reporter.folder = unfinished.final
        group.from_first(None)  # the others have nothing to do
        return version
    if resume is not False:
        unfinished.demand_resumable()
    with attempt(unfinished, recipe.name, registry, reporter) as stops:
        metrics: Mapping[str, Metrics] | None = unfinished.result()
        if metrics is None:
            shelf = shelf or Shelf()
            metrics = _train(unfinished, recipe, registry, reporter, stops, group, shelf, resumed=resume is not False)
        else:
            group.from_first(None)
        reporter.folder = unfinished.final
        reporter.phase("registering")
        version = _register(recipe, registry, unfinished.final, metrics)
    reporter.phase("done")
    return version


def _train(
    unfinished: Unfinished, recipe: Recipe, registry: Registry, reporter: Reporter, stops: Stops, group: Group,
    shelf: Shelf, *, resumed: bool,
) -> Mapping[str, Metrics]:  # fmt: skip
    """From the rows to the checked files in their place; the metrics."""
    parent = find_parent(recipe, registry)
    demand_login(recipe)
    # Rows are checked before the seconds that the libraries and the base take.
    reporter.phase("reading the data")
    data = load_data(recipe, reporter.note)
    with writing(unfinished.final):
        if resumed:
            check_same(unfinished, recipe, data.provenance, parent, group.count, reporter)
        else:
            begin(unfinished, recipe, data.provenance, parent, group.count)
    group.from_first(Shared(unfinished.checkpoints, parent))
    one_of_several = recipe.training.seeds > 1 or recipe.training.folds
    with quiet_libraries(), bases_of(registry):
        with writing(unfinished.final):
            base = shelf.take(recipe, make_task(recipe, data.labels, data.problem_type))
            if one_of_several:
                finished = _run_several(recipe, data, parent, base, unfinished, reporter, stops)
            else:
                finished = _run_once(recipe, data, parent, base, unfinished, reporter, stops, group)
        reporter.phase("checking the saved files")
        check(finished, unfinished.files, registry)
        shelf.put(recipe, finished.prepared.task, finished.prepared.base.bare)
        with writing(unfinished.final):
            unfinished.complete(finished.metrics)
    return finished.metrics


def _run_once(
    recipe: Recipe, data: Examples, parent: Parent | None, base: Base | None, unfinished: Unfinished,
    reporter: Reporter, stops: Stops, group: Group,
) -> Finished:  # fmt: skip
    """One run, and its files."""
    prepared = prepare(recipe, data, reporter, parent, base, group)
    check_base(unfinished, prepared.base.identity)
    finished = run(prepared, unfinished.checkpoints, reporter, stops, group)
    reporter.phase("saving")
    save_run(finished, unfinished.new_files())
    return finished


def _run_several(
    recipe: Recipe, data: Examples, parent: Parent | None, base: Base | None, unfinished: Unfinished,
    reporter: Reporter, stops: Stops,
) -> Finished:  # fmt: skip
    """A run for each seed or fold; the one that is kept, and its files."""
    from lorary.training.experiments.repeated import run_folds, run_seeds
    from lorary.training.experiments.session import Session

    session = Session(unfinished.checkpoints, reporter, stops, lambda base: check_base(unfinished, base.identity), base)
    several = run_folds if recipe.training.folds else run_seeds
    return several(recipe, data, parent, session, unfinished.new_files())


@dataclass(frozen=True)
class Shared:
    """What the first process of a group tells the others."""

    checkpoints: Path
    parent: Parent | None


def take_part(recipe: Recipe, group: Group) -> None:
    """Train with the first process of ``group``, which calls :func:`train`: as it, without a word and without files.

    Raises as :func:`train`.
    """
    shared: Shared | None = group.from_first(None)
    if shared is None:
        return
    from lorary.training.fitting.fit import fit

    with Stops() as stops, quiet_libraries():
        prepared = prepare(recipe, load_data(recipe), Reporter(), shared.parent, group=group)
        lend = prepared.shards.lend if prepared.shards else lambda: None
        lend()  # while the first measures the untrained model
        with prepared.task.scaled(prepared.model, prepared.train, prepared.base.tokenizer):
            fit(
                prepared.model, prepared.base.tokenizer, prepared.task, prepared.train, prepared.validation,
                prepared.recipe, folder=shared.checkpoints, reporter=Reporter(), stops=stops, group=group,
            )  # fmt: skip
        lend()  # while it measures what was trained,
        lend()  # and while it checks the files


def demand_room(recipe: Recipe, registry: Registry) -> None:
    """What the catalogue would refuse after the run is refused before it.

    Raises:
        RegistryConflictError: it has the recipe's name with another domain or task.
        RegistryError: it can't be written.
    """
    place = next(path for path in (registry.path, *registry.path.parents) if path.exists())
    if not os.access(place, os.W_OK) or (place != registry.path and not place.is_dir()):
        raise RegistryError(f"{registry.path}: can't be written; name another registry, or make it writable")
    for version in registry.each(recipe.name):
        if isinstance(version, Unreadable):
            continue
        for what, theirs, ours in (
            ("domain", version.domain, normalise_domain(recipe.domain)),
            ("task", version.task, recipe.task),
        ):
            if theirs != ours:
                raise RegistryConflictError(
                    f"{recipe.name!r} is in {registry.path} with the {what} {theirs!r}, the recipe says {ours!r}; "
                    "choose another name"
                )


def _register(recipe: Recipe, registry: Registry, folder: Path, metrics: Mapping[str, Metrics]) -> Version:
    checkpoint = read_checkpoint(folder)
    return registry.add(
        checkpoint,
        name=recipe.name,
        domain=recipe.domain,
        task=recipe.task,
        metrics=metrics,
        tags=recipe.tags,
        parents=_parents(checkpoint, registry),
        strategy=recipe.strategy,
        base_folder=recipe.base if Path(recipe.base).expanduser().is_dir() else None,
        aliases=[recipe.alias] if recipe.alias is not None else [],
        why="trained",
    )


def _parents(checkpoint: Checkpoint, registry: Registry) -> list[str]:
    """What the weights began from, as their manifest has it, if it is in the catalogue.

    Since the run began an alias may have moved, or the parent may have been removed.
    """
    told = checkpoint.manifest.provenance.get("from") if checkpoint.manifest else None
    if told is None:
        return []
    found = [version.reference for version in registry.with_digest(told["digest"])]
    return [told["reference"]] if told["reference"] in found else found[:1]
