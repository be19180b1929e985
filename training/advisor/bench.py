"""The base, and one adapter of the catalogue after the other on it, measured on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lorary.adapters import Backbone
from lorary.adapters.base.loading import load_base
from lorary.hub.errors import BaseNotFoundError
from lorary.hub.manifest import GENERATING
from lorary.hub.metrics import lower_is_better
from lorary.hub.registry import Registry
from lorary.hub.values import Version
from lorary.training.advisor.measure import Manner, as_it_is, scorer_of
from lorary.training.advisor.probe import Measured, probe
from lorary.training.advisor.states import states_of
from lorary.training.experiments.bootstrap import RESAMPLES, Difference, paired_bootstrap
from lorary.training.model import Base, load_for
from lorary.training.recipe import Recipe
from lorary.training.tasks import Encoded, Task

FOLDS = 5


@dataclass(frozen=True)
class Start:
    """What a run could start from: the base as it is (``reference`` is None), or an adapter on it.

    ``score`` is what :mod:`lorary.training.advisor.measure` says, ``against_base`` how it differs from the base's.
    ``ready`` is the main metric of an adapter that answers with these very labels, as it is. ``domain`` and ``task``
    are the adapter's.
    """

    reference: str | None
    domain: str | None
    task: str | None
    score: float
    against_base: Difference | None = None
    ready: float | None = None


def open_base(recipe: Recipe, task: Task, manner: Manner | None) -> Base:
    """A recipe's base: without a head where a probe stands for it, so that adapters of all tasks find theirs.

    Raises:
        BaseNotFoundError: it can't be found or loaded, or has no tokenizer.
        TrainingError: it can't be trained for the task.
    """
    if manner != "probe":
        base = load_for(task, recipe)
        base.model.requires_grad_(False)
        return base
    loaded = load_base(
        recipe.base, quantization=recipe.base_quantization, dtype=recipe.dtype, device=recipe.device,
        device_map=recipe.device_map, revision=recipe.revision,
    )  # fmt: skip
    if loaded.tokenizer is None:
        raise BaseNotFoundError(f"base {recipe.base!r} has no tokenizer; expected its files beside the weights")
    return Base(loaded.model, loaded.tokenizer, loaded.identity, ())


@dataclass(frozen=True)
class Best:
    """The start that is surely the best, what was made of the rows from there, and its states where it is probed."""

    start: Start
    measured: Measured
    states: Sequence[torch.Tensor]


class Bench:
    """Measures starts: :meth:`begin` the base, then :meth:`try_start` each adapter.

    Args:
        base: from :func:`open_base`; it is taken over until :meth:`release`.
        rows: training rows of the task, of which every beginning has the labels in proportion.
    """

    best: Best
    bare: Best

    def __init__(
        self, base: Base, task: Task, manner: Manner, rows: Encoded, batch_size: int, registry: Registry
    ) -> None:
        self.task, self.rows = task, rows
        self.folds = [place * FOLDS // len(rows.examples) for place in range(len(rows.examples))]
        self.scorer, self.probed = scorer_of(task, manner), manner == "probe"
        self._manner, self._base, self._batch_size, self._registry = manner, base, batch_size, registry
        self._sign = -1 if lower_is_better(self.scorer.main_metric) else 1
        self._count = 1

    def takes(self, version: Version) -> bool:
        """Can this adapter be measured for the task? Its head would be in the way of another's."""
        return self.probed or version.task == self.task.name or {version.task, self.task.name} <= set(GENERATING)

    def begin(self, count: int) -> Start:
        """Measure the base as it is.

        Args:
            count: how many adapters will be held against it. Each is by an interval that is the wider the more there
                are (Bonferroni), so that one of many isn't better by luck.
        """
        self._count, base = max(1, count), self._base
        # Before it is a backbone: that leaves a head behind which no adapter has.
        measured, states = self._measured(base.model)
        self.bare = self.best = Best(Start(None, None, None, measured.score), measured, states)
        self._backbone = Backbone.from_model(
            base.model, base.tokenizer, identity=base.identity, slots=1, registry=self._registry
        )
        return self.bare.start

    def try_start(self, version: Version) -> Start:
        """Measure an adapter; it is the best where it is surely better than the base, and no other is by more.

        Raises:
            LoraryError: it can't be loaded on this base.
        """
        self._backbone.load(version.reference, version.reference)
        try:
            with self._backbone.using(version.reference) as model:
                measured, states = self._measured(model)
            ready = self._ready(version)
        finally:
            self._backbone.unload(version.reference)
        found = self.difference(measured, self.bare.measured, self._count)
        start = Start(version.reference, version.domain, version.task, measured.score, found, ready)
        if found.verdict == "better" and self._sign * (start.score - self.best.start.score) > 0:
            self.best = Best(start, measured, states)
        return start

    def difference(self, ours: Measured, theirs: Measured, count: int = 1) -> Difference:
        """How two measurements of the rows differ, where ``count`` are held against the same one."""
        return paired_bootstrap(
            self.scorer, self.rows.golds, [ours.outcomes], [theirs.outcomes],
            level=1 - 0.05 / count, resamples=max(RESAMPLES, RESAMPLES // 2 * count),
        )  # fmt: skip

    def release(self) -> None:
        """Give the base back as it was."""
        self._backbone.release()

    def _measured(self, model: Any) -> tuple[Measured, Sequence[torch.Tensor]]:
        asked = self.rows, self._base.tokenizer, self._batch_size
        if self.probed:
            states = states_of(model, self.task, *asked)
            return probe(self.task, self.rows, states, self.folds), states
        return as_it_is(model, self.task, self._manner, *asked), ()

    def _ready(self, version: Version) -> float | None:
        """The metric of an adapter whose head answers with these labels, in this order."""
        manifest = version.manifest
        if not self.probed or version.task != self.task.name or manifest is None:
            return None
        if tuple(manifest.labels or ()) != self.task.labels or manifest.problem_type != self.task.problem_type:
            return None
        with self._backbone.using(version.reference) as model:
            return as_it_is(model, self.task, "as it is", self.rows, self._base.tokenizer, self._batch_size).score
