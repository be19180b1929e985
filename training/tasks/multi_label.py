"""Text classification with any number of labels a row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorary.adapters import Backbone
from lorary.adapters.predict.text_classification import OWN, THRESHOLD
from lorary.hub.manifest import MULTI_LABEL
from lorary.training.data import Example, Note
from lorary.training.data.splits import FEWEST_VALIDATION_ROWS
from lorary.training.recipe.raw import some
from lorary.training.report.content import Mistakes
from lorary.training.tasks.base import Answer, Metrics
from lorary.training.tasks.heads.thresholds import table_of, tune_thresholds
from lorary.training.tasks.heads.weights import positive_weights
from lorary.training.tasks.metrics.scores import Scores, area_under_curves, stacked
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.text_classification import TextClassification

if TYPE_CHECKING:
    from lorary.training.fitting.losses import Loss
    from lorary.training.recipe import Recipe


@dataclass(frozen=True)
class Decided:
    """What a row came to: the probability of each label, and the labels that it was given."""

    scores: Scores
    labels: tuple[str, ...]


class MultiLabelClassification(TextClassification):
    """A yes or no for each label, from its own probability (the logit's sigmoid) and its own threshold."""

    problem_type = MULTI_LABEL

    def __init__(self, recipe: Recipe, labels: tuple[str, ...] | None) -> None:
        super().__init__(recipe, labels)
        setting = recipe.training.threshold
        self.decides = setting is None or setting == "tuned"
        self._thresholds = table_of(self.labels, None if setting == "tuned" else setting)
        self._tuned: dict[str, Any] = {}

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

    def decide(self, outcomes: Sequence[Any], golds: Sequence[Any], note: Note) -> Sequence[Any]:
        """Find each label's threshold."""
        if not outcomes:
            how = (
                f"a data.validation_size that makes {FEWEST_VALIDATION_ROWS} rows takes them from the training rows"
                if self.recipe.training.early_stopping
                else "none are split off where training.early_stopping is 0"
            )
            note(f"a row has a label from {THRESHOLD} on: no validation rows to find better thresholds on; {how}")
            return outcomes
        before = self.main_score(outcomes, golds)
        scores = stacked([outcome.scores for outcome in outcomes])
        self._thresholds = tune_thresholds(scores, np.asarray(self._truth(golds)))
        settled = [self.decided(outcome.scores) for outcome in outcomes]
        after = self.main_score(settled, golds)
        self._tuned = {
            "thresholds": {"rows": len(golds), "metric": self.main_metric, "at_half": before, "tuned": after},
        }  # fmt: skip
        shown = some([f"{label} {value:.2g}" for label, value in zip(self.labels, self._thresholds, strict=True)])
        note(
            f"a row has a label from these scores on, found on {len(golds)} rows that weren't trained on: {shown} "
            f"({self.main_metric} there {after:.3g}, at {THRESHOLD} {before:.3g})"
        )
        return settled

    def _truth(self, golds: Sequence[Any]) -> list[list[bool]]:
        return [[label in gold for label in self.labels] for gold in golds]

    def thresholds(self) -> tuple[float, ...] | None:
        """What was found or given; None where it is one half for all."""
        return None if set(self._thresholds) == {THRESHOLD} else self._thresholds

    def figures(self) -> dict[str, Any]:
        """How the thresholds were found."""
        return {**super().figures(), **self._tuned}

    def decided(self, scores: Scores) -> Decided:
        """The outcome that each label's score comes to."""
        parts = zip(self.labels, scores, self._thresholds, strict=True)
        return Decided(scores, tuple(label for label, score, least in parts if score >= least))

    def outcome(self, logits: torch.Tensor, feature: Feature) -> Any:
        """The probability of each label ([classes] logits), and the labels from their threshold on."""
        return self.decided(tuple(logits.float().sigmoid().tolist()))

    def found(self, outcome: Any) -> Any:
        """The labels that a row was given."""
        return list(outcome.labels)

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Any]:
        """The scores that ``predict`` gives the rows, and the labels that it reads with the manifest's thresholds."""
        scored = super().through(backbone, name, rows)
        read = backbone.predict(self.texts(rows), name, batch_size=1, threshold=OWN)
        given = [{entry["label"] for entry in answer} for answer in read]
        return [
            Decided(outcome.scores, tuple(label for label in self.labels if label in labels))
            for outcome, labels in zip(scored, given, strict=True)
        ]

    def of_prediction(self, scores: dict[str, float]) -> Any:
        """The outcome that a prediction's scores by label come to."""
        return self.decided(super().of_prediction(scores))

    def measured_on(self, rows: Encoded) -> Iterable[Any]:
        """Each row's labels, in no order."""
        return map(frozenset, rows.golds)

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """scikit-learn's: ``accuracy`` of whole label sets, ``f1``, ``precision`` and ``recall`` as means over the
        labels, ``f1_micro`` over all decisions, ``f1_samples`` as the mean over the rows, and the mean ``auc`` (ROC).

        ``auc`` is left out where a label has no row, or all of them.
        """  # fmt: skip
        from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

        truth, found = self._truth(golds), self._truth([outcome.labels for outcome in outcomes])
        precision, recall, f1, _ = precision_recall_fscore_support(truth, found, average="macro", zero_division=0.0)
        return {
            "accuracy": float(accuracy_score(truth, found)),
            "f1": float(f1),
            "f1_micro": float(f1_score(truth, found, average="micro", zero_division=0.0)),
            "f1_samples": float(f1_score(truth, found, average="samples", zero_division=0.0)),
            "precision": float(precision),
            "recall": float(recall),
            **area_under_curves(truth, stacked([outcome.scores for outcome in outcomes])),
        }

    def scoring(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Callable[[Sequence[int]], float]:
        """``f1`` from the counts of each label, of rows that are looked at once."""
        truth, found = np.asarray(self._truth(golds)), np.asarray(self._truth([outcome.labels for outcome in outcomes]))

        def f1(places: Sequence[int]) -> float:
            rows = np.asarray(places)
            there = truth[rows].sum(0) + found[rows].sum(0)
            return float((2 * (truth & found)[rows].sum(0) / np.maximum(there, 1)).mean())

        return f1

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """``f1`` alone: scikit-learn's checks of its input take a hundred times as long."""
        return self.scoring(outcomes, golds)(range(len(golds)))

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
        always = Decided(tuple(float(label in most) for label in self.labels), most)
        return self.metrics([always] * len(golds), golds)
