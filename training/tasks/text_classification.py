"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lorary.adapters import Backbone
from lorary.hub.manifest import SINGLE_LABEL
from lorary.training.data import Example
from lorary.training.report.confusion import count_labels
from lorary.training.report.content import Mistakes
from lorary.training.tasks.base import Answer, Metrics, Task
from lorary.training.tasks.heads.weights import weighed
from lorary.training.tasks.metrics.scores import Scores, area_under_curves, stacked
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Length

if TYPE_CHECKING:
    from lorary.training.fitting.losses import Loss


class TextClassification(Task):
    """Single-label classification with a fresh head; its outcomes are each label's probability."""

    name = "text-classification"
    peft_task_type = "SEQ_CLS"
    main_metric = "f1"
    problem_type = SINGLE_LABEL

    def auto_class(self) -> Any:
        """``AutoModelForSequenceClassification``."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_kwargs(self) -> dict[str, Any]:
        """The labels, and what they are (transformers would guess it from the first batch)."""
        return {**super().model_kwargs(), "problem_type": self.problem_type}

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """Text (and pair) to token ids, cut to ``max_length``; of a pair the longer one is cut first."""
        texts = [example.values[role] for role in ("text", "text_pair") if role in example.values]
        feature = dict(tokenizer(*texts, truncation=True, max_length=max_length))
        kept = len(feature["input_ids"])
        full = len(tokenizer(*texts, verbose=False)["input_ids"]) if kept == max_length else kept
        return Coded(({**feature, "labels": self.target(example.values["label"])},), Length(full, kept))

    def gold(self, example: Example, row: Coded) -> Any:
        """The label."""
        return example.values["label"]

    def target(self, label: Any) -> Any:
        """A row's label as the loss takes it: the label's number."""
        return self.labels.index(label)

    def criterion(self, train: Any) -> Loss | None:
        """Cross entropy with the recipe's class weights and label smoothing, where it has any."""
        counts = Counter(train["labels"])
        return weighed(self.recipe, self.labels, [counts[index] for index in range(len(self.labels))])

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads with the tokenizer's padding token."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def outcome(self, logits: torch.Tensor, feature: Feature) -> Any:
        """The probability of each label, [classes]."""
        return tuple(logits.float().softmax(-1).tolist())

    def found(self, outcome: Any) -> Any:
        """What an outcome comes to: the likeliest label."""
        return self.labels[outcome.index(max(outcome))]

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """scikit-learn's ``accuracy``, ``f1``, ``precision`` and ``recall`` (means over the labels), ``f1_micro``,
        ``mcc`` (Matthews) and ``auc`` (ROC; of more than two labels the mean of each against the rest).

        ``auc`` is left out where the rows lack one of the labels.
        """  # fmt: skip
        from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef, precision_recall_fscore_support

        found = [self.found(outcome) for outcome in outcomes]
        precision, recall, f1, _ = precision_recall_fscore_support(golds, found, average="macro", zero_division=0.0)
        truth = [[gold == label for label in self.labels] for gold in golds]
        return {
            "accuracy": float(accuracy_score(golds, found)),
            "f1": float(f1),
            "f1_micro": float(f1_score(golds, found, average="micro")),
            "precision": float(precision),
            "recall": float(recall),
            # One label everywhere is 0 by definition, which scikit-learn says in a warning.
            "mcc": float(matthews_corrcoef(golds, found)) if len({*golds, *found}) > 1 else 0.0,
            **area_under_curves(truth, stacked(outcomes)),
        }

    def scoring(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Callable[[Sequence[int]], float]:
        """``f1`` from the counts of (gold, found), of rows that are looked at once."""
        numbers, size = {label: number for number, label in enumerate(self.labels)}, len(self.labels)
        found = (numbers[self.found(outcome)] for outcome in outcomes)
        pairs = np.asarray([numbers[gold] * size + other for gold, other in zip(golds, found, strict=True)])

        def f1(places: Sequence[int]) -> float:
            counts = np.bincount(pairs[np.asarray(places)], minlength=size * size).reshape(size, size)
            there = counts.sum(0) + counts.sum(1)
            return float((2 * counts.diagonal()[there > 0] / there[there > 0]).mean())

        return f1

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """``f1`` alone: scikit-learn's checks of its input take a hundred times as long."""
        return self.scoring(outcomes, golds)(range(len(golds)))

    def losses(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Sequence[float] | None:
        """The cross entropy of each row's probabilities."""
        if self.problem_type != SINGLE_LABEL:
            return None
        own = (outcome[self.labels.index(gold)] for outcome, gold in zip(outcomes, golds, strict=True))
        return [-math.log(max(probability, sys.float_info.min)) for probability in own]

    def caveats(self, golds: Sequence[Any]) -> Sequence[str]:
        """Labels that the held-out rows lack, which leave ``auc`` undefined."""
        absent = [label for label in self.labels if label not in set(golds)]
        return [f"no auc: none of the held-out rows has the label {absent[0]!r}"] if absent else []

    def mistakes(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Mistakes | None:
        """The confusion matrix."""
        return count_labels(self.labels, golds, [self.found(outcome) for outcome in outcomes])

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """The label that the row has, and the one that it was given."""
        return super().answer(example, gold, self.found(outcome))

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Any]:
        """The scores that ``predict`` gives the rows themselves, as a user would ask for them."""
        answers = backbone.predict(self.texts(rows), name, batch_size=1, top_k=None)
        return [self.of_prediction({entry["label"]: entry["score"] for entry in answer}) for answer in answers]

    def texts(self, rows: Encoded) -> list[dict[str, str]]:
        """Rows as ``predict`` takes them."""
        return [
            {role: example.values[role] for role in ("text", "text_pair") if role in example.values}
            for example in rows.examples
        ]

    def of_prediction(self, scores: dict[str, float]) -> Any:
        """The outcome that a prediction's scores by label come to."""
        return tuple(scores[label] for label in self.labels)

    def majority(self, train: Sequence[Example], golds: Sequence[Any]) -> Metrics | None:
        """The metrics of always answering the training rows' most frequent label."""
        counts = Counter(example.values["label"] for example in train)
        most = min(self.labels, key=lambda label: (-counts[label], label))
        always: Scores = tuple(float(label == most) for label in self.labels)
        return self.metrics([always] * len(golds), golds)
