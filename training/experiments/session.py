"""One base in memory for several runs of one task: each gets it bare, with a head of its own seed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from lorary.training.data import Examples
from lorary.training.interrupt import Stops
from lorary.training.model import Base, take_off
from lorary.training.one_run import Finished, run
from lorary.training.prepare import prepare
from lorary.training.progress import Reporter
from lorary.training.recipe import Recipe
from lorary.training.strategies.parent import Parent
from lorary.training.tasks.base import Metrics


class OneRun(Reporter):
    """The reporter of one of several runs: it keeps the run's own notices, and says which run a phase belongs to.

    ``before``: what was told of the rows, which is of each run.
    """

    def __init__(self, whole: Reporter, title: str, before: Sequence[str]) -> None:
        super().__init__()
        self.notices += before
        self._whole, self._title = whole, title

    def phase(self, text: str) -> None:
        """Timed with the run, and shown with its title."""
        super().phase(text)
        self._whole.phase(f"{self._title}: {text}")

    def step(self, done: int, total: int, loss: float) -> None:
        """Shown as it is."""
        self._whole.step(done, total, loss)

    def note(self, line: str) -> None:
        """Kept with the run, and shown once however many runs say it."""
        super().note(line)
        self._whole.note(line)


class Session:
    """Runs recipes of one base, task and set of labels one after the other.

    Args:
        checkpoints: where the runs' checkpoints go, a folder each; a run that has some there goes on from them.
        reporter: is told of all runs.
        stops: whether the user has asked to stop.
        base: one that is in memory already.
        loaded: is called with the base when it is in memory, before anything is trained.
    """

    def __init__(
        self,
        checkpoints: Path,
        reporter: Reporter,
        stops: Stops | None = None,
        loaded: Callable[[Base], None] = lambda base: None,
        base: Base | None = None,
    ) -> None:
        self.reporter = reporter
        self._checkpoints = checkpoints
        self._stops = stops
        self._loaded = loaded
        self._base = base
        self._before: tuple[str, ...] | None = None  # the notices of the rows, which precede those of any run
        if base is not None:
            loaded(base)

    def run(self, recipe: Recipe, data: Examples, title: str, parent: Parent | None = None) -> Finished:
        """A whole run; its model keeps its adapter until :meth:`release`. Raises as :func:`lorary.training.train`.

        ``title`` names the run to the user and its checkpoints' folder, so it has to be its own.
        """
        if self._before is None:
            self._before = tuple(self.reporter.notices)
        told = OneRun(self.reporter, title, self._before)
        prepared = prepare(recipe, data, told, parent, self._base)
        if self._base is None:
            self._loaded(prepared.base)
        self._base = prepared.base.bare  # what new tokens make of it is taken off with the adapter
        return run(prepared, self._folder(title), told, self._stops)

    def forget(self, title: str) -> None:
        """Remove the checkpoints of a run whose result is kept elsewhere."""
        shutil.rmtree(self._folder(title), ignore_errors=True)

    def _folder(self, title: str) -> Path:
        return self._checkpoints / title.replace(" ", "-")

    def release(self, finished: Finished) -> None:
        """Take a run's adapter off the base."""
        take_off(finished.prepared.model, finished.prepared.base)


def validation_metrics(finished: Finished) -> Metrics | None:
    """A finished run's metrics on its validation rows; None without any."""
    prepared = finished.prepared
    rows = prepared.validation
    if rows is None:
        return None
    size = prepared.recipe.training.batch_size
    found = finished.seen or prepared.task.outcomes(prepared.model, rows, prepared.base.tokenizer, size)
    return prepared.task.metrics(found, rows.golds)
