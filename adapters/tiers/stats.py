"""A backbone's figures, put together for who asks."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lorary.adapters.layer.slots import Arena
from lorary.adapters.tiers.books import Books
from lorary.adapters.tiers.figures import Figures
from lorary.adapters.values import Followed, Percentiles, Stats


def stats_of(
    books: Books, arena: Arena, figures: Figures, backbone_bytes: int, followed: tuple[Followed, ...]
) -> Stats:
    """The figures of this moment; the caller holds the books' lock."""
    contents = {adapter.content for adapter in books.named.values()}
    return Stats(
        adapters=tuple(books.named),
        slots=books.slots,
        slots_used=len(books.slot_of),
        backbone_bytes=backbone_bytes,
        arena_bytes=arena.nbytes,
        slot_bytes=arena.slot_bytes,
        rank=arena.layout.rank,
        parts_bytes=sum(content.parts.nbytes for content in contents if content.parts is not None),
        host_adapters=len(books.host),
        host_bytes=books.host.nbytes,
        disk_adapters=sum(content not in books.slot_of and content not in books.host for content in contents),
        hits=figures.hits,
        misses=figures.misses,
        swaps=figures.swaps,
        evictions=figures.evictions,
        disk_reads=figures.disk_reads,
        dropped=figures.dropped,
        swapped_bytes=figures.bytes_swapped,
        read_bytes=figures.bytes_read,
        swap_seconds=tuple(figures.swap_seconds),
        swap_percentiles=percentiles(figures.swap_seconds),
        read_percentiles=percentiles(figures.read_seconds),
        followed=followed,
    )


def percentiles(values: Sequence[float]) -> Percentiles | None:
    """Percentiles by the nearest rank, None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    return Percentiles(*(ordered[math.ceil(share * len(ordered)) - 1] for share in (0.5, 0.9, 0.99)))
