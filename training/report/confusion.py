"""Which labels are taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lorary.training.report.content import Mistakes

MOST_LABELS = 30  # more can't be read in a table


def count_labels(labels: Sequence[str], golds: Sequence[str], outcomes: Sequence[str]) -> Mistakes | None:
    """The confusion matrix; of more than thirty labels, those that are mistaken most often, None where none is."""
    pairs = Counter(zip(golds, outcomes, strict=True))
    if len(labels) > MOST_LABELS:
        wrong: Counter[str] = Counter()
        for (gold, outcome), count in pairs.items():
            if gold != outcome:
                wrong[gold] += count
                wrong[outcome] += count
        chosen = {label for label, _ in wrong.most_common(MOST_LABELS)}
        labels = [label for label in labels if label in chosen]
        if not labels:
            return None
    counts = tuple(tuple(pairs[gold, outcome] for outcome in labels) for gold in labels)
    return Mistakes(kind="confusion", rows=tuple(labels), columns=tuple(labels), counts=counts)
