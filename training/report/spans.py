"""What became of the entities of a tagged text."""

from __future__ import annotations

from collections.abc import Sequence

from lorary.training.report.content import Mistakes

_COLUMNS = ("right", "other type", "other bounds", "missed", "invented")

Span = tuple[str, int, int]  # type, first word, last word


def count_spans(golds: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> Mistakes | None:
    """Each type's entities: found, found with another type, with other bounds, not at all; and those that aren't there.

    None where there is no entity. Tags mark entities as seqeval reads them (BIO, BIOES). An invented one counts under
    the type that was answered.
    """
    from seqeval.metrics.sequence_labeling import get_entities

    counts: dict[str, list[int]] = {}

    def add(kind: str, column: str) -> None:
        counts.setdefault(kind, [0] * len(_COLUMNS))[_COLUMNS.index(column)] += 1

    for gold_tags, tags in zip(golds, predicted, strict=True):
        gold, found = set(get_entities(list(gold_tags))), set(get_entities(list(tags)))
        for span in sorted(gold):
            add(span[0], _fate(span, found))
        for span in sorted(found):
            if not any(_touch(span, other) for other in gold):
                add(span[0], "invented")
    if not counts:
        return None
    kinds = sorted(counts)
    return Mistakes(
        kind="spans", rows=tuple(kinds), columns=_COLUMNS, counts=tuple(tuple(counts[kind]) for kind in kinds)
    )


def _fate(span: Span, found: set[Span]) -> str:
    if span in found:
        return "right"
    touching = [other for other in found if _touch(span, other)]
    if any(other[1:] == span[1:] for other in touching):
        return "other type"
    return "other bounds" if touching else "missed"


def _touch(one: Span, other: Span) -> bool:
    return one[1] <= other[2] and other[1] <= one[2]
