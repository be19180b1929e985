"""The folder of a comparison of runs while it isn't finished: ``--resume`` takes what is done from there.

It is that of a single run (:mod:`lorary.training.unfinished`), with the checkpoints of each run and the results of
those that are done. Nothing of it is left when the comparison is finished.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.errors import TrainingError
from lorary.hub.registry import Registry
from lorary.training.attempt import attempt
from lorary.training.data import Examples
from lorary.training.experiments.session import Session
from lorary.training.interrupt import Stops
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.resume import begin, check_base, check_same, choose_run
from lorary.training.run_facts import Check, a_count, broken
from lorary.training.save import writing
from lorary.training.unfinished import Unfinished

_OPTIONS = "options"


@dataclass(frozen=True)
class Option:
    """A setting of a comparison that isn't the recipe's; ``given`` is None where the user doesn't say.

    ``check`` says what is wrong with the value that a comparison was begun with.
    """

    given: Any
    default: Any
    check: Check = a_count


@dataclass(frozen=True)
class Comparison:
    """A comparison that this process works on; ``resumed``: it goes on with one that was stopped."""

    recipe: Recipe
    unfinished: Unfinished
    stops: Stops
    reporter: Reporter
    resumed: bool
    options: Mapping[str, Any]

    def begin(self, data: Examples) -> None:
        """Write down what the comparison depends on, or hold it against what it began with.

        Raises:
            TrainingError: recipe or rows aren't those that it began with.
        """
        with writing(self.unfinished.final):
            if self.resumed:
                check_same(self.unfinished, self.recipe, data.provenance, None, 1, self.reporter)
            else:
                begin(self.unfinished, self.recipe, data.provenance, None, 1, **{_OPTIONS: dict(self.options)})

    def hold(self, key: str, value: str, otherwise: str) -> None:
        """Write down another fact, or hold it against the one that the comparison began with.

        Raises:
            TrainingError: it is another one; ``otherwise`` says so.
        """
        begun = self.unfinished.facts().get(key)
        if begun is None:
            self.unfinished.note_fact(key, value)
        elif begun != value:
            raise TrainingError(f"{self.unfinished.final}: can't go on as it began, {otherwise}; start anew")

    def session(self) -> Session:
        """Runs whose checkpoints stay until the comparison is finished."""
        run = self.unfinished
        return Session(run.checkpoints, self.reporter, self.stops, lambda base: check_base(run, base.identity))


@contextmanager
def comparing(
    recipe: Recipe, registry: Registry, reporter: Reporter, command: str, resume: bool | str | Path,
    asked: Mapping[str, Option],
) -> Iterator[Comparison]:  # fmt: skip
    """The folder of a comparison: a new one, or that of one that was stopped.

    Args:
        command: the words that go on with it, after ``lorary``.
        resume: the newest unfinished one of this recipe (True), or that of a folder.
        asked: its options; one that goes on has those that it began with.

    Raises:
        TrainingError: there is none to go on with, it has other options, or another process works on it.
        InterruptedRunError: Ctrl-C, SIGTERM or SIGHUP; the message says how to go on.
    """
    unfinished = choose_run(recipe, resume, registry, command)
    if resume is not False:
        unfinished.demand_resumable()
    with attempt(unfinished, recipe.name, registry, reporter, "the comparison isn't finished") as stops:
        resumed = resume is not False
        yield Comparison(recipe, unfinished, stops, reporter, resumed, _options(unfinished, asked, resumed))


def _options(run: Unfinished, asked: Mapping[str, Option], resumed: bool) -> dict[str, Any]:
    """The options that are given, then those that it began with, then the defaults.

    Raises:
        TrainingError: others are given than it began with, or those aren't what they have to be.
    """
    begun: Mapping[str, Any] = run.facts().get(_OPTIONS, {}) if resumed else {}
    for name, option in asked.items():
        if name in begun and (problem := option.check(begun[name])):
            raise broken(run.written, f"{_OPTIONS}.{name}: {problem}")
    changed = [
        f"{name}: {begun[name]} in the run, {option.given} now"
        for name, option in asked.items()
        if option.given is not None and begun.get(name, option.given) != option.given
    ]
    if changed:
        raise TrainingError(
            f"{run.final}: can't go on as it began, {'; '.join(changed)}. Put that back, or start anew without --resume"
        )
    own = {name: option.default if option.given is None else option.given for name, option in asked.items()}
    return {**own, **begun}
