"""An adapter made ready for one backbone: what its headers say, and where its tensors are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorary.adapters.heads.task_heads import TaskHead
from lorary.adapters.layer.override import TrainedLinear
from lorary.adapters.matching.keys import KeyPlan
from lorary.adapters.text.tokenizers import OwnTokenizer
from lorary.adapters.tiers.content import Content
from lorary.hub.checkpoint import Checkpoint
from lorary.hub.errors import UnsupportedAdapterError
from lorary.hub.manifest import Manifest
from lorary.hub.noted_task import PEFT_TYPES, likely_task
from lorary.hub.tables.catalogue import demand_task


@dataclass(frozen=True)
class Fit:
    """What a checkpoint's headers say of it on one backbone: its task, the place of each tensor, its head's labels.

    ``labels`` is None for tasks that have none.
    """

    task: str
    plan: KeyPlan
    labels: list[str] | None


@dataclass(eq=False, repr=False)
class Adapter:
    """One version of an adapter, fitted to a backbone, under the name it was loaded by.

    Its tensors are in ``content``, which adapters of the same digest share; within a lease they are all there.
    """

    name: str
    checkpoint: Checkpoint
    fit: Fit
    content: Content
    own_tokenizer: OwnTokenizer | None = None

    @property
    def source(self) -> str:
        """What errors call it."""
        return self.checkpoint.source

    @property
    def manifest(self) -> Manifest | None:
        """Its manifest, if it has one."""
        return self.checkpoint.manifest

    @property
    def task(self) -> str:
        """Its task."""
        return self.fit.task

    @property
    def plan(self) -> KeyPlan:
        """The place of each of its tensors."""
        return self.fit.plan

    @property
    def labels(self) -> list[str] | None:
        """The names of the head's classes, in order; None for tasks that have none."""
        return self.fit.labels

    @property
    def digest(self) -> str:
        """The version's identity."""
        return self.content.digest

    def rank_at(self, path: str) -> int:
        """The adapter's rank at a site, 0 where it has none."""
        need = self.content.needs.get(path)
        return need.rank if need is not None else 0

    @property
    def rank(self) -> int:
        """The largest rank at any site."""
        return max(site.rank for site in self.plan.sites)

    @property
    def head(self) -> TaskHead | None:
        """The task head, on the backbone's device; None where there is none, or while it isn't in memory."""
        return self.content.parts.head if self.content.parts else None

    @property
    def overrides(self) -> Mapping[str, TrainedLinear]:
        """The linears that were trained whole, by path, on the backbone's device; empty while not in memory."""
        return self.content.parts.overrides if self.content.parts else {}


def task_of(checkpoint: Checkpoint) -> str:
    """The task of a checkpoint: its manifest's, else the catalogue's, else what PEFT's ``task_type`` stands for.

    Whoever registered a foreign adapter said what PEFT leaves open. PEFT saves no task type unless it was told one, and
    then the class that was trained (``auto_mapping``).

    Raises:
        RegistryError: the catalogue has something else for its task.
        UnsupportedAdapterError: a task type that PEFT doesn't define.
    """
    if checkpoint.manifest is not None:
        return checkpoint.manifest.task
    if checkpoint.catalogued_task is not None:
        return demand_task(checkpoint.source, checkpoint.catalogued_task)
    task_type = checkpoint.config.get("task_type")
    if task_type not in (None, *PEFT_TYPES):
        raise UnsupportedAdapterError(
            f"{checkpoint.source}: task_type {task_type!r}; expected one of {', '.join(PEFT_TYPES)}"
        )
    return likely_task(checkpoint.config)


def with_its_task(checkpoint: Checkpoint) -> str:
    """What errors about its task call a checkpoint: the task is told where only the catalogue says it."""
    told = checkpoint.catalogued_task if checkpoint.manifest is None else None
    return f"{checkpoint.source} ({told} by the catalogue)" if told else checkpoint.source
