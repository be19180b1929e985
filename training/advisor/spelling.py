"""What the spelling of a text alone says of its label, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorary.training.advisor.probe import Measured, probe
from lorary.training.tasks import Encoded, Task

_PENALTIES = (10.0, 100.0, 1000.0)  # rows of tf-idf have length 1 and many features, so that weights have to be larger
_LONGEST, _RUNS = 2_000, 50_000  # characters of a text, and the commonest runs: beyond, this would take minutes


def spelling_alone(task: Task, rows: Encoded, folds: Sequence[int]) -> Measured:
    """The same probe on the weights of runs of two to five letters within words (scikit-learn's tf-idf).

    What a model makes of the texts has to be better than this to be worth its while. Of a text that is cut, no more is
    read than the model reads of it.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" \n ".join(text[:end] for text, end in _given(rows, place)) for place in range(len(rows.examples))]
    runs = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, max_features=_RUNS)
    weights: Any = runs.fit_transform(texts)
    matrices = [weights[place] for place in range(len(texts))]
    return probe(task, rows, matrices, folds, penalties=_PENALTIES, scaled=False)


def _given(rows: Encoded, place: int) -> list[tuple[str, int]]:
    """A row's texts, and how many characters of each are read: as large a share as of its tokens."""
    length, values = rows.lengths[place], rows.examples[place].values
    texts = [str(values[role]) for role in ("text", "text_pair") if role in values]
    return [(text, min(_LONGEST, -(-len(text) * length.kept // length.full))) for text in texts]
