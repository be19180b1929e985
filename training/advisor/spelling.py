"""What the spelling of a text alone says of its label, without any model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lorary.training.advisor.probe import Measured, probe
from lorary.training.tasks import Encoded, Task

_PENALTIES = (10.0, 100.0, 1000.0)  # rows of tf-idf have length 1 and many features, so that weights have to be larger


def spelling_alone(task: Task, rows: Encoded, folds: Sequence[int]) -> Measured:
    """The same probe on the weights of runs of two to five letters within words (scikit-learn's tf-idf).

    What a model makes of the texts has to be better than this to be worth its while.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = [" \n ".join(_given(example.values)) for example in rows.examples]
    weights: Any = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True).fit_transform(texts)
    matrices = [weights[place] for place in range(len(texts))]
    return probe(task, rows, matrices, folds, penalties=_PENALTIES, scaled=False)


def _given(values: Any) -> list[str]:
    return [str(values[role]) for role in ("text", "text_pair") if role in values]
