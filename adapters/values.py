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
class Percentiles:
    """The 50th, 90th and 99th percentile of the last thousand times, in seconds."""

    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Followed:
    """A name that follows a reference: the digest it serves, and why a later version could not be picked up, if so."""

    name: str
    reference: str
    digest: str
    error: str | None = None


@dataclass(frozen=True)
class Stats:
    """A backbone's figures: adapters, bytes and times by tier, since it was opened.

    ``hits`` and ``misses`` count, for each call, the adapters that were and weren't in their slots; ``swaps`` are
    copies into slots, ``evictions`` those that took a slot from another adapter, ``disk_reads`` readings of files,
    ``dropped`` what the host's budget made it forget. ``swap_seconds`` are the last thousand copies (on CUDA from
    pinned memory: the time to queue them). ``parts_bytes`` are task heads and modules trained whole, on the device. An
    adapter under two names counts once in ``slots_used``, ``host_adapters`` and ``disk_adapters``.
    ``peft_bytes`` is what the adapters that run through PEFT take on the device; they hold no slot.
    """

    adapters: tuple[str, ...]
    slots: int
    slots_used: int
    backbone_bytes: int
    arena_bytes: int
    slot_bytes: int
    rank: int
    parts_bytes: int
    host_adapters: int
    host_bytes: int
    disk_adapters: int
    hits: int
    misses: int
    swaps: int
    evictions: int
    disk_reads: int
    dropped: int
    swapped_bytes: int
    read_bytes: int
    swap_seconds: tuple[float, ...]
    swap_percentiles: Percentiles | None
    read_percentiles: Percentiles | None
    followed: tuple[Followed, ...]
    peft_bytes: int = 0


@dataclass(frozen=True)
class MergedModel:
    """What :meth:`Backbone.merge` came to.

    ``difference`` is the largest between the reloaded model's logits and the adapter's, relative to 1 + the row's
    largest; ``notes`` are worth showing to the user.
    """

    folder: str
    adapter: str
    digest: str
    model_class: str
    dtype: str
    difference: float
    notes: tuple[str, ...]
    seconds: float
