"""Text classification with any number of labels a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from lorary.adapters.predict.text_classification import THRESHOLD
from lorary.hub.manifest import MULTI_LABEL
from lorary.training.data import Example
from lorary.training.report.content import Mistakes
from lorary.training.tasks.base import Answer, Feature, Metrics
from lorary.training.tasks.scores import Scores, area_under_curves, stacked
from lorary.training.tasks.text_classification import TextClassification
from lorary.training.tasks.weights import positive_weights

if TYPE_CHECKING:
    from lorary.training.fitting.losses import Loss


class MultiLabelClassification(TextClassification):
    """A yes or no for each label, from its own probability (the logit's sigmoid)."""

    problem_type = MULTI_LABEL

    def target(self, label: Any) -> list[float]:
        """1.0 for each label that the row has, else 0.0."""
        return [float(name in label) for name in self.labels]

    def criterion(self, train: Any) -> Loss | None:
        """Binary cross entropy, each label's presence weighed as the recipe says."""
        setting = self.recipe.training.class_weights
        rows = train["labels"]
        counts = [int(sum(row[place] for row in rows)) for place in range(len(self.labels))]
        weight = positive_weights(setting, self.labels, counts, len(rows))
        if weight is None:
            return None
        from lorary.training.fitting.losses import BinaryCrossEntropy

        return BinaryCrossEntropy(weight)

    def outcome(self, logits: torch.Tensor, feature: Feature) -> Any:
        """The probability of each label, [classes]."""
        return tuple(logits.float().sigmoid().tolist())

    def found(self, outcome: Any) -> Any:
        """The labels with a probability of at least one half (``THRESHOLD``)."""
        return [label for label, score in zip(self.labels, outcome, strict=True) if score >= THRESHOLD]

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """scikit-learn's: ``accuracy`` of whole label sets, ``f1``, ``precision`` and ``recall`` as means over the
        labels, ``f1_micro`` over all decisions, ``f1_samples`` as the mean over the rows, and the mean ``auc`` (ROC).

        ``auc`` is left out where a label has no row, or all of them.
        """  # fmt: skip
        from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

        truth = [[label in gold for label in self.labels] for gold in golds]
        scores = stacked(outcomes)
        found = scores >= THRESHOLD
        precision, recall, f1, _ = precision_recall_fscore_support(truth, found, average="macro", zero_division=0.0)
        return {
            "accuracy": float(accuracy_score(truth, found)),
            "f1": float(f1),
            "f1_micro": float(f1_score(truth, found, average="micro", zero_division=0.0)),
            "f1_samples": float(f1_score(truth, found, average="samples", zero_division=0.0)),
            "precision": float(precision),
            "recall": float(recall),
            **area_under_curves(truth, scores),
        }

    def caveats(self, golds: Sequence[Any]) -> Sequence[str]:
        """Labels that none or all of the held-out rows have, which leave ``auc`` undefined."""
        counts = Counter(label for gold in golds for label in gold)
        for label in self.labels:
            if counts[label] in (0, len(golds)):
                share = "none" if not counts[label] else "each"
                return [f"no auc: {share} of the held-out rows has the label {label!r}"]
        return []

    def mistakes(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Mistakes | None:
        """Nothing: labels that stand beside each other aren't taken for one another."""
        return None

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """The labels that the row has, and those that it was given."""
        answer = super().answer(example, gold, outcome)
        return Answer(answer.given, ", ".join(gold) or "-", ", ".join(self.found(outcome)) or "-", answer.right)

    def majority(self, train: Sequence[Example], golds: Sequence[Any]) -> Metrics | None:
        """The metrics of always answering the training rows' most frequent set of labels."""
        counts = Counter(tuple(example.values["label"]) for example in train)
        most = min(counts, key=lambda labels: (-counts[labels], labels))
        always: Scores = tuple(float(label in most) for label in self.labels)
        return self.metrics([always] * len(golds), golds)
