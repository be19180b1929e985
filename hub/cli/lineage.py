"""Drawing where a version came from and what came of it, as a tree of lines that reads in a pipe as in a terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from lorary.hub.cli.output import short_number
from lorary.hub.metrics import headline
from lorary.hub.values import Version


def draw_lineage(version: Version, everything: Sequence[Version], damaged: Collection[str] = ()) -> list[str]:
    """A line for each version that ``version`` was trained from or that was trained from it; none where it is alone.

    A child stands below its parent, two blanks further in; ``<-`` marks the version itself. A version with several
    parents (a blend) stands below each of them. ``damaged`` are references of versions whose rows can't be read.
    """
    known = {other.reference: other for other in everything}
    family = _ancestors(version, known)
    if not family and not _children(version, everything):
        return []
    line = {*family, version.reference}
    # A parent that was removed from the catalogue has no parents that are known.
    roots = [reference for reference in family if not (known[reference].parents if reference in known else ())]
    drawn: set[str] = set()
    starts = roots or [version.reference]
    rows = [row for root in starts for row in _below(root, line, version, everything, damaged, drawn)]
    widths = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return [f"{name:<{widths[0]}}  {strategy:<{widths[1]}}  {rest}".rstrip() for name, strategy, rest in rows]


def lineage_json(
    version: Version, everything: Sequence[Version], damaged: Collection[str] = ()
) -> dict[str, list[dict[str, Any]]]:
    """The same as plain values: ``ancestors`` and ``descendants``, nearest first."""
    known = {other.reference: other for other in everything}
    return {
        "ancestors": [_told(reference, known, damaged) for reference in _ancestors(version, known)],
        "descendants": [_told(reference, known, damaged) for reference in _descendants(version, everything)],
    }


def _told(reference: str, known: Mapping[str, Version], damaged: Collection[str]) -> dict[str, Any]:
    other = known.get(reference)
    if reference in damaged:
        return {"reference": reference, "damaged": True}
    if other is None:
        return {"reference": reference, "elsewhere" if "/" in reference else "removed": True}
    return {
        "reference": reference,
        "strategy": other.strategy,
        "task": other.task,
        "domain": other.domain,
        "parents": list(other.parents),
        "test": dict(other.metrics.get("test", {})),
    }


def _ancestors(version: Version, known: Mapping[str, Version]) -> list[str]:
    """Nearest first; a catalogue that anybody may have written could hold a circle."""
    found: dict[str, None] = {}
    level = [version.reference]
    while level:
        parents = [parent for name in level if name in known for parent in known[name].parents]
        level = [name for name in dict.fromkeys(parents) if name not in found and name != version.reference]
        found.update(dict.fromkeys(level))
    return list(found)


def _children(version: Version, everything: Sequence[Version]) -> list[Version]:
    return [other for other in everything if version.reference in other.parents]


def _descendants(version: Version, everything: Sequence[Version]) -> list[str]:
    found: dict[str, None] = {}
    level = [version]
    while level:
        children = [child for parent in level for child in _children(parent, everything)]
        level = [child for child in children if child.reference not in found and child is not version]
        found.update(dict.fromkeys(child.reference for child in level))
    return list(found)


def _below(
    root: str,
    line: set[str],
    version: Version,
    everything: Sequence[Version],
    damaged: Collection[str],
    drawn: set[str],
) -> Iterator[tuple[str, str, str]]:
    """The rows of one version and what of its descendants belongs to the picture."""
    known = {one.reference: one for one in everything}
    waiting = [(root, 0)]  # a list of its own: Python's calls go a thousand deep, and a line may be longer
    while waiting:
        reference, depth = waiting.pop()
        here, again = reference == version.reference, reference in drawn
        if reference in damaged:
            yield f"{'  ' * depth}{reference}", "", "(can't be read)"
        else:
            yield _row(f"{'  ' * depth}{reference}", known.get(reference), here, again)
        if again:
            continue
        drawn.add(reference)
        # Above the version only the way to it is drawn, below it everything: siblings would bury it.
        inside = reference not in line or here
        below = [one.reference for one in everything if reference in one.parents]
        waiting += [(child, depth + 1) for child in reversed(below) if inside or child in line]


def _row(name: str, other: Version | None, here: bool, again: bool) -> tuple[str, str, str]:
    if other is None:
        # Only what is on a remote has a slash in its reference.
        return name, "", "(not in this catalogue)" if "/" in name else "(removed from the catalogue)"
    metric = headline(other.metrics.get("test", {}))
    told = f"{metric[0]} {short_number(metric[1])}" if metric else ""
    marks = [told, "<-" if here else "", "(as above)" if again else ""]
    return name, other.strategy, "  ".join(mark for mark in marks if mark)
