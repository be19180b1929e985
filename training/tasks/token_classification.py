"""Token classification: a tag for each word of a sentence, with entities marked in IOB1, IOB2 (BIO), IOBES or BILOU.

The words are joined by spaces and tokenized as one text, the way a user's text will be; a word's tag is put on the
first piece that begins inside it. So every fast tokenizer serves, with or without a space as prefix.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Any

import torch

from lorary.hub.errors import TrainingError
from lorary.training.data import Example
from lorary.training.data.labels.tags import as_iobes, mark_entities
from lorary.training.fitting.losses import IGNORED
from lorary.training.recipe import Recipe
from lorary.training.report.confusion import count_labels
from lorary.training.report.content import Mistakes
from lorary.training.report.spans import count_spans
from lorary.training.tasks.base import Answer, Metrics, Task
from lorary.training.tasks.heads.weights import weighed
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Length

if TYPE_CHECKING:
    from lorary.training.fitting.losses import Loss


@dataclass(frozen=True)
class Gold:
    """A sentence's tags, and which words the tokenizer gave a piece that carries the tag."""

    tags: tuple[str, ...]
    words: tuple[int, ...]


class TokenClassification(Task):
    """A tag per word with a fresh head."""

    name = "token-classification"
    peft_task_type = "TOKEN_CLS"
    main_metric = "f1"

    def __init__(self, recipe: Recipe, labels: tuple[str, ...] | None) -> None:
        super().__init__(recipe, labels)
        self._counted = cache(self._count)

    @property
    def entities(self) -> bool:
        """Do the tags mark entities (BIO and its kin), rather than stand for words one by one?"""
        return mark_entities(self.labels)

    def auto_class(self) -> Any:
        """``AutoModelForTokenClassification``."""
        from transformers import AutoModelForTokenClassification

        return AutoModelForTokenClassification

    def look(self, examples: Sequence[Example], tokenizer: Any, max_length: int) -> None:
        """Raises TrainingError where the tokenizer can't say where its pieces come from."""
        if not getattr(tokenizer, "is_fast", False):
            raise TrainingError("token-classification needs a fast tokenizer (a tokenizer.json beside the base)")

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """Words to token ids; a word's tag goes to its first piece, all other pieces are left out of the loss.

        Known are the words that the tokenizer gave a piece that carries the tag.
        """
        words, tags = example.values["tokens"], example.values["tags"]
        text = " ".join(words)
        starts = [0, *accumulate(len(word) + 1 for word in words)][: len(words)]
        feature = dict(tokenizer(text, truncation=True, max_length=max_length, return_offsets_mapping=True))
        labels: list[int] = []
        tagged: list[int] = []
        for start, end in feature.pop("offset_mapping"):
            # Some tokenizers count the space before a word as part of its first piece.
            while start < end and text[start].isspace():
                start += 1
            word = bisect_right(starts, start) - 1
            first = start < end and word not in tagged[-1:]
            labels.append(self.labels.index(tags[word]) if first else IGNORED)
            if first:
                tagged.append(word)
        kept = len(labels)
        full = len(tokenizer(text, verbose=False)["input_ids"]) if kept == max_length else kept
        return Coded(({**feature, "labels": labels},), Length(full, kept, bool(tagged)), tuple(tagged))

    def gold(self, example: Example, row: Coded) -> Gold:
        """The tags, and the words that carry them."""
        return Gold(tuple(example.values["tags"]), row.known)

    def criterion(self, train: Any) -> Loss | None:
        """Cross entropy over the tagged words with the recipe's class weights and label smoothing, where it has any."""
        counts = Counter(chain(*train["labels"]))
        return weighed(self.recipe, self.labels, [counts[index] for index in range(len(self.labels))])

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads tokens and tags."""
        from transformers import DataCollatorForTokenClassification

        return DataCollatorForTokenClassification(tokenizer)

    def outcome(self, logits: torch.Tensor, feature: Feature) -> list[str]:
        """The predicted tag of each tagged word, in order."""
        best = logits.argmax(-1).tolist()
        return [self.labels[best[place]] for place, label in enumerate(feature["labels"]) if label != IGNORED]

    def measured_on(self, rows: Encoded) -> Iterable[Any]:
        """The tags of all words, also of those that a tokenizer has cut off."""
        return (gold.tags for gold in rows.golds)

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Entity F1, precision and recall (seqeval, as CoNLL-2003 counts), ``f1_macro`` over the types, each type's F1,
        and the share of words with the right tag.

        Words that were cut off count as predicted to be outside of any entity, and as wrong where there is no outside.
        """
        predicted = [self._whole(outcome, gold) for outcome, gold in zip(outcomes, golds, strict=True)]
        return self._score(predicted, [list(gold.tags) for gold in golds])

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """``f1`` from each sentence's counts of entities, taken once: seqeval takes half a second for a thousand."""
        if not self.entities:
            return super().main_score(outcomes, golds)
        counts = [self._counted(gold, tuple(outcome)) for outcome, gold in zip(outcomes, golds, strict=True)]
        right, there = (sum(column) for column in zip(*counts, strict=True))
        return 2 * right / there if there else 0.0

    def _count(self, gold: Gold, outcome: tuple[str, ...]) -> tuple[int, int]:
        """How many entities are right, and how many there are and were found."""
        from seqeval.metrics.sequence_labeling import get_entities

        tags = gold.tags, self._whole(outcome, gold)
        expected, found = (set(get_entities(as_iobes(one))) for one in tags)
        return len(expected & found), len(expected) + len(found)

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """The words, with the tag behind each that is part of an entity."""
        words, tags = example.values["tokens"], self._whole(outcome, gold)
        return Answer(" ".join(words), _tagged(words, gold.tags), _tagged(words, tags), list(gold.tags) == tags)

    def mistakes(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Mistakes | None:
        """What became of the entities of each type; of tags that mark none, their confusion."""
        predicted = [self._whole(outcome, gold) for outcome, gold in zip(outcomes, golds, strict=True)]
        if self.entities:
            return count_spans([as_iobes(gold.tags) for gold in golds], [as_iobes(tags) for tags in predicted])
        return count_labels(self.labels, list(chain(*(gold.tags for gold in golds))), list(chain(*predicted)))

    def _whole(self, outcome: Sequence[str], gold: Gold) -> list[str]:
        if self.entities or "O" in self.labels:
            tags = ["O"] * len(gold.tags)
        else:  # one tag for all of them would be right for some
            tags = [next(label for label in self.labels if label != tag) for tag in gold.tags]
        for word, tag in zip(gold.words, outcome, strict=True):
            tags[word] = tag
        return tags

    def _score(self, predicted: list[list[str]], golds: list[list[str]]) -> Metrics:
        from sklearn.metrics import accuracy_score, precision_recall_fscore_support

        flat_golds, flat_predicted = list(chain(*golds)), list(chain(*predicted))
        accuracy = float(accuracy_score(flat_golds, flat_predicted))
        if self.entities:
            return entity_scores([as_iobes(tags) for tags in golds], [as_iobes(tags) for tags in predicted], accuracy)
        precision, recall, f1, _ = precision_recall_fscore_support(
            flat_golds, flat_predicted, average="macro", zero_division=0.0
        )
        return {"f1": float(f1), "precision": float(precision), "recall": float(recall), "accuracy": accuracy}

    def majority(self, train: Sequence[Example], golds: Sequence[Any]) -> Metrics | None:
        """The metrics of giving every word the training rows' most frequent tag."""
        counts = Counter(tag for example in train for tag in example.values["tags"])
        most = min(self.labels, key=lambda label: (-counts[label], label))
        return self._score([[most] * len(gold.tags) for gold in golds], [list(gold.tags) for gold in golds])


def entity_scores(golds: list[list[str]], predicted: list[list[str]], accuracy: float) -> Metrics:
    """seqeval's scores of tags in IOB1, IOB2 or IOBES: over all entities, the mean of the types, and each type's F1.

    Only types that the rows have are told one by one (``f1_PER``).
    """
    from seqeval.metrics import f1_score
    from seqeval.metrics.sequence_labeling import get_entities, precision_recall_fscore_support

    precision, recall, f1, _ = precision_recall_fscore_support(golds, predicted, average="micro", zero_division=0)
    _, _, by_type, support = precision_recall_fscore_support(golds, predicted, average=None, zero_division=0)
    types = sorted({kind for kind, _, _ in [*get_entities(golds), *get_entities(predicted)]})
    each = {f"f1_{kind}": float(f1) for kind, f1, count in zip(types, by_type, support, strict=True) if count}
    macro = float(f1_score(golds, predicted, average="macro", zero_division=0)) if types else 0.0
    return {
        "f1": float(f1),
        "f1_macro": macro,
        "precision": float(precision),
        "recall": float(recall),
        "accuracy": accuracy,
        **each,
    }


def _tagged(words: Sequence[str], tags: Sequence[str]) -> str:
    return " ".join(word if tag == "O" else f"{word}[{tag}]" for word, tag in zip(words, tags, strict=True))
