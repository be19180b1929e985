"""Text classification: one label for a text or a pair of texts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lorary.adapters import Backbone
from lorary.training.data import Example, Note
from lorary.training.report.confusion import count_labels
from lorary.training.report.content import Mistakes
from lorary.training.tasks.base import Encoded, Feature, Metrics, Task
from lorary.training.tasks.lengths import Length


class TextClassification(Task):
    """Single-label classification with a fresh head."""

    name = "text-classification"
    peft_task_type = "SEQ_CLS"
    main_metric = "f1"
    problem_type = "single_label_classification"

    def auto_class(self) -> Any:
        """``AutoModelForSequenceClassification``."""
        from transformers import AutoModelForSequenceClassification

        return AutoModelForSequenceClassification

    def model_kwargs(self) -> dict[str, Any]:
        """The labels, and that each row has exactly one (with integer labels transformers would guess)."""
        return {**super().model_kwargs(), "problem_type": self.problem_type}

    def encode(self, examples: Sequence[Example], tokenizer: Any, max_length: int, note: Note) -> Encoded:
        """Text (and pair) to token ids, cut to ``max_length``; of a pair the longer one is cut first."""
        ids = {label: index for index, label in enumerate(self.labels)}
        features: list[Feature] = []
        lengths: list[Length] = []
        for example in examples:
            texts = [example.values[role] for role in ("text", "text_pair") if role in example.values]
            feature = dict(tokenizer(*texts, truncation=True, max_length=max_length))
            kept = len(feature["input_ids"])
            full = len(tokenizer(*texts, verbose=False)["input_ids"]) if kept == max_length else kept
            lengths.append(Length(full, kept))
            features.append({**feature, "labels": ids[example.values["label"]]})
        golds = tuple(example.values["label"] for example in examples)
        return Encoded(tuple(examples), tuple(features), golds, tuple(lengths))

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads with the tokenizer's padding token."""
        from transformers import DataCollatorWithPadding

        return DataCollatorWithPadding(tokenizer)

    def outcome(self, logits: torch.Tensor, feature: Feature) -> str:
        """The name of the label with the largest logit."""
        return self.labels[int(logits.argmax())]

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Accuracy, and F1, precision and recall as means over the labels (scikit-learn's ``macro``)."""
        from sklearn.metrics import accuracy_score, precision_recall_fscore_support

        precision, recall, f1, _ = precision_recall_fscore_support(golds, outcomes, average="macro", zero_division=0.0)
        return {
            "accuracy": float(accuracy_score(golds, outcomes)),
            "f1": float(f1),
            "precision": float(precision),
            "recall": float(recall),
        }

    def mistakes(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Mistakes | None:
        """The confusion matrix."""
        return count_labels(self.labels, golds, outcomes)

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Any]:
        """The labels that ``predict`` gives the rows themselves, as a user would ask for them."""
        texts = [
            {role: example.values[role] for role in ("text", "text_pair") if role in example.values}
            for example in rows.examples
        ]
        return [
            prediction[0]["label"] if isinstance(prediction, list) else prediction["label"]
            for prediction in backbone.predict(texts, name, batch_size=1)
        ]

    def majority(self, train: Sequence[Example], golds: Sequence[Any]) -> Metrics | None:
        """The metrics of always answering the training rows' most frequent label."""
        counts = Counter(example.values["label"] for example in train)
        most = min(self.labels, key=lambda label: (-counts[label], label))
        return self.metrics([most] * len(golds), golds)
