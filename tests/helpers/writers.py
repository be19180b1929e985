"""What a writing process does, in a module that a spawned process can import."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorary.hub import Registry


def write_a_lot(path: Path, number: int, sources: Sequence[Path]) -> None:
    """One of several writers: registers under a name of its own and one shared by all, promotes, and removes again."""
    registry = Registry(path)
    for round, source in enumerate(sources):
        shared = registry.add(source, name="shared", tags=["t"], metrics={"test": {"f1": round + number / 10}})
        registry.promote(shared.reference, "latest", require=["verify"])
        own = registry.add(source, name=f"own-{number}", parents=[shared.reference])
        registry.alias(own.name, "prod", own.number)
        registry.find(tag="t")
        if round == 1:
            registry.remove(own.reference, force=True)
            registry.collect()
