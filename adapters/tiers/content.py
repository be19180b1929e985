"""What all adapters of one digest and task share, whatever their names: their tensors, and whether they were proven."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lorary.adapters.heads.task_heads import TaskHead
from lorary.adapters.layer.override import TrainedLinear
from lorary.adapters.layer.slots import SiteNeed
from lorary.adapters.tiers.blocks import Block


@dataclass(frozen=True)
class Parts:
    """What an adapter has beside its slot, on the backbone's device: modules trained whole, and the task head."""

    overrides: Mapping[str, TrainedLinear]
    head: TaskHead | None

    @property
    def nbytes(self) -> int:
        """What they take on the device."""
        tensors = [t for own in self.overrides.values() for t in (own.weight, own.bias) if t is not None]
        return sum(tensor.nbytes for tensor in tensors) + (self.head.nbytes if self.head else 0)


@dataclass(eq=False)
class Content:
    """The tensors of one digest, for one task, on one backbone, as far as they are in memory.

    ``block`` is the slot's content on the host, None where it was dropped or not yet read; ``parts`` are there while
    the adapter is on the host, in a slot or in use. The books of
    :class:`~lorary.adapters.tiers.residency.Residency` alone change any of this. ``needs`` is
    empty until the tensors were read once; ``tame``, whether they are so small that no pass can overflow for them;
    ``proven``, whether they were shown to take effect.
    """

    digest: str
    needs: Mapping[str, SiteNeed] = field(default_factory=dict)
    block: Block | None = None
    parts: Parts | None = None
    tame: bool = False
    proven: bool = False
