"""What two adapters differ in: what they are, their configs, data, metrics, how they came to be, and their weights."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorary.hub.checkpoint import Checkpoint
from lorary.hub.comparing.norms import NormDifference, compare_norms
from lorary.hub.tables.catalogue import describe
from lorary.hub.values import Version

_LONGEST = 20  # values of a list before only their number is told

_FACTS = (
    "digest", "domain", "task", "base_id", "base_fingerprint", "method", "quantization", "rank", "parameters",
    "strategy", "created_at", "parents", "tags",
)  # fmt: skip
# Of the manifest: what is told elsewhere, or is too long to read.
_ELSEWHERE = frozenset({"task", "domain", "provenance", "golden_rows"})
# Of the provenance: measured values by the hundred, and what has a section of its own.
_NOT_COMPARED = frozenset({"curve", "data"})


@dataclass(frozen=True)
class Side:
    """One of the two: a version with its checkpoint, or the checkpoint of a folder."""

    shown: str
    checkpoint: Checkpoint
    version: Version | None = None


@dataclass(frozen=True)
class Change:
    """A field in which the two differ; None where one of them doesn't have it."""

    field: str
    left: Any
    right: Any


@dataclass(frozen=True)
class MetricChange:
    """A metric of both, or of one; ``difference`` is the right one minus the left one."""

    split: str
    metric: str
    left: float | None
    right: float | None
    difference: float | None


@dataclass(frozen=True)
class Difference:
    """Two adapters, side by side; ``sections`` holds what differs by subject, ``weights`` the most different first."""

    left: str
    right: str
    same_digest: bool
    sections: Mapping[str, tuple[Change, ...]]
    metrics: tuple[MetricChange, ...]
    weights: tuple[NormDifference, ...]


def compare(left: Side, right: Side) -> Difference:
    """Compare two adapters.

    Raises:
        CheckpointError: the files of one of them don't hold what they should.
    """
    sides = (left, right)
    sections = {
        "facts": _changes(*map(_facts, sides)),
        "config": _changes(*(side.checkpoint.config for side in sides)),
        "manifest": _changes(*map(_manifest, sides)),
        "data": _changes(*(_provenance(side).get("data") for side in sides)),
        "provenance": _changes(
            *({key: value for key, value in _provenance(side).items() if key not in _NOT_COMPARED} for side in sides)
        ),
    }
    return Difference(
        left.shown,
        right.shown,
        left.checkpoint.digest == right.checkpoint.digest,
        {name: changes for name, changes in sections.items() if changes},
        tuple(_metrics(left, right)),
        tuple(compare_norms(left.checkpoint, right.checkpoint)),
    )


def _facts(side: Side) -> dict[str, Any]:
    own = side.checkpoint.manifest
    known: dict[str, Any] = {"task": own.task, "domain": own.domain} if own else {}
    known |= asdict(side.version) if side.version else asdict(describe(side.checkpoint))
    return {name: known.get(name) for name in _FACTS}


def _manifest(side: Side) -> dict[str, Any]:
    own = side.checkpoint.manifest
    return {key: value for key, value in asdict(own).items() if key not in _ELSEWHERE} if own else {}


def _provenance(side: Side) -> Mapping[str, Any]:
    return side.checkpoint.manifest.provenance if side.checkpoint.manifest else {}


def _changes(left: Any, right: Any) -> tuple[Change, ...]:
    ours, theirs = _flat(left), _flat(right)
    names = [*ours, *(name for name in theirs if name not in ours)]
    return tuple(Change(name, ours.get(name), theirs.get(name)) for name in names if ours.get(name) != theirs.get(name))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """A tree of JSON values as dotted names and values; what is off is left out, as PEFT writes every field."""
    if isinstance(value, Mapping):
        return {
            name: leaf
            for key, below in value.items()
            for name, leaf in _flat(below, f"{prefix}.{key}" if prefix else str(key)).items()
        }
    if value is None or value is False or value in ("", [], ()):
        return {}
    if isinstance(value, Collection) and not isinstance(value, str):
        values = list(value)
        if len(values) > _LONGEST:
            return {prefix: f"{len(values)} values"}
        if prefix == "target_modules":  # a set, whose order in the file is by chance
            values = sorted(values, key=str)
        return {prefix: json.dumps(values) if any(not isinstance(one, str) for one in values) else ", ".join(values)}
    return {prefix: value}


def _metrics(left: Side, right: Side) -> list[MetricChange]:
    ours, theirs = (side.version.metrics if side.version else {} for side in (left, right))
    rows = []
    for split in sorted({*ours, *theirs}, key=lambda name: (name != "test", name)):
        first, second = ours.get(split, {}), theirs.get(split, {})
        for metric in dict.fromkeys((*first, *second)):
            a, b = first.get(metric), second.get(metric)
            rows.append(MetricChange(split, metric, a, b, b - a if a is not None and b is not None else None))
    return rows
