"""The values that a backbone hands out."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LoadedAdapter:
    """What :meth:`Backbone.load` came to. ``notes`` are worth showing to the user; ``seconds`` is the whole load."""

    name: str
    reference: str
    digest: str
    task: str
    labels: tuple[str, ...] | None
    rank: int
    notes: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Stats:
    """A backbone's figures: bytes on the device, slots, and the seconds that copies into slots took.

    ``peft_bytes`` is what the adapters that run through PEFT take; they hold no slot.
    """

    adapters: tuple[str, ...]
    slots: int
    slots_used: int
    backbone_bytes: int
    arena_bytes: int
    slot_bytes: int
    peft_bytes: int
    rank: int
    evictions: int
    swap_seconds: tuple[float, ...]
