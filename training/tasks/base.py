"""What a task has to say about itself for the trainer, the evaluation and the gate to work with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from lorary.adapters import Backbone
from lorary.training.data import Example, Note
from lorary.training.data.roles import TARGET_ROLES
from lorary.training.fitting.evaluate import outcomes, token_logits
from lorary.training.recipe import Recipe
from lorary.training.report.content import Mistakes
from lorary.training.tasks.in_manifest import InManifest
from lorary.training.tasks.rows.coding import Coded, code_rows, settings_of
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.lengths import Room
from lorary.training.tasks.rows.token_cache import TokenCache

if TYPE_CHECKING:
    from lorary.training.fitting.losses import Loss

Metrics = dict[str, float]


@dataclass(frozen=True)
class Answer:
    """What a row gave the model, what was expected, what it answered, and whether that is right."""

    given: str
    expected: str
    found: str
    right: bool


class Task(InManifest, ABC):
    """One task of one run: a recipe's settings and the labels found in its data."""

    name: ClassVar[str]
    peft_task_type: str | None
    main_metric: str
    new_head: ClassVar[bool] = True  # False: the base's own head stays as it is
    bare: ClassVar[bool] = False  # True: the body alone is trained and served, without any head
    masks: ClassVar[bool] = False  # True: that head is a masked language model's
    targets: ClassVar[tuple[str, ...]] = ("labels",)  # the features that say what is to be learned
    decides: bool = False  # True: validation rows settle how its scores become answers
    batch_counts: ClassVar[bool] = False  # True: a row's loss depends on the other rows of its batch
    least_batch: int = 1  # the rows without which a batch has nothing to teach
    windowed: ClassVar[bool] = False  # True: a row may have several features
    scored_in_one_pass: ClassVar[bool] = True  # False: its metrics need generation, so only the loss is cheap
    gate_rows: ClassVar[int] = 64  # the most held-out rows that the gate compares the metrics on

    def __init__(self, recipe: Recipe, labels: tuple[str, ...] | None) -> None:
        self.recipe = recipe
        self.labels = labels or ()
        self.notices: list[str] = []  # what its trainer has to tell the user

    def begin(self, train: Sequence[Example]) -> None:
        """Called once, before any row is encoded: what the task has to know of the training rows."""

    def check_base(self, model: Any) -> None:
        """Called once with the base that was loaded with :meth:`auto_class`.

        Raises:
            TrainingError: a base of its kind can't be trained for the task.
        """

    @abstractmethod
    def auto_class(self) -> Any:
        """The transformers class that gives a base this task's head."""

    def model_kwargs(self) -> dict[str, Any]:
        """Arguments of the model class: the labels' names, where there are labels."""
        if not self.labels:
            return {}
        return {
            "num_labels": len(self.labels),
            "id2label": dict(enumerate(self.labels)),
            "label2id": {label: index for index, label in enumerate(self.labels)},
        }

    def meet(self, model: Any, tokenizer: Any, max_length: int, note: Note) -> int:
        """Get to know the base before rows are encoded: settle what depends on its kind, refuse what can't be done.

        Args:
            max_length: the most tokens of a row, as the recipe and the base have it.

        Returns:
            The same, or less where the task needs room for more than a row.

        Raises:
            TrainingError: the base can't be trained for this task, or not with these settings.
        """
        return max_length

    def keep_head(self) -> None:
        """Called where the head isn't a fresh one: it is that of the adapter that the run starts from."""

    def encode(
        self, examples: Sequence[Example], tokenizer: Any, max_length: int, note: Note, cache: TokenCache | None = None
    ) -> Encoded:
        """Token ids of all rows, each cut to ``max_length`` with its :class:`Length` told.

        No row is left out: :func:`lorary.training.tasks.rows.lengths.fit_lengths` decides that. ``note`` is told of
        what else the user should know of the rows. Rows that ``cache`` has aren't tokenized again.

        Raises:
            DataError: rows that can't be turned into token ids, each by its file and number.
            TrainingError: the tokenizer lacks what the task needs.
        """
        self.look(examples, tokenizer, max_length)

        def code(examples: Sequence[Example]) -> list[Coded]:
            return code_rows(self, examples, tokenizer, max_length, cache)

        examples, rows = self.unfold(examples, code(examples), code)
        encoded = Encoded(
            tuple(examples),
            tuple(feature for row in rows for feature in row.features),
            tuple(self.gold(example, row) for example, row in zip(examples, rows, strict=True)),
            tuple(row.length for row in rows if row.length is not None),
            tuple(place for place, row in enumerate(rows) for _ in row.features) if self.windowed else None,
        )
        self.remark(encoded, rows, tokenizer, note)
        return encoded

    def look(self, examples: Sequence[Example], tokenizer: Any, max_length: int) -> None:
        """Called with rows before they are encoded. Raises as :meth:`encode`."""

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """One row's token ids; they depend on nothing but the row, the tokenizer and :meth:`coding`."""
        raise NotImplementedError

    def unfold(
        self, examples: Sequence[Example], rows: Sequence[Coded], code: Callable[[Sequence[Example]], list[Coded]]
    ) -> tuple[Sequence[Example], Sequence[Coded]]:
        """The rows that are trained and measured on: themselves, unless one of them takes several to be learned whole.

        ``code`` gives the token ids of more rows.
        """
        return examples, rows

    def coding(self, tokenizer: Any, max_length: int) -> dict[str, Any]:
        """What :meth:`code` depends on beside the row and the tokenizer, as plain values."""
        own = {"kind": type(self).__qualname__, "labels": list(self.labels), "length": max_length}
        return {**settings_of(self.recipe), **own}

    def gold(self, example: Example, row: Coded) -> Any:
        """What the row's outcome is compared with."""
        return None

    def remark(self, encoded: Encoded, rows: Sequence[Coded], tokenizer: Any, note: Note) -> None:
        """Tell ``note`` what the user should know of rows that were encoded, beside what was cut."""

    @abstractmethod
    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """A function that pads features to one batch."""

    def refer(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> Encoded:
        """Rows with what the task has to know of ``model`` as it is before the first step; most have nothing."""
        return rows

    def trainer(self, model: Any, tokenizer: Any, settings: Mapping[str, Any], rows: Mapping[str, Any]) -> Any:
        """The trainer of this task: transformers' own unless the task has another.

        Args:
            model: a ``PeftModel``, ready to train.
            tokenizer: the base's.
            settings: arguments of ``TrainingArguments``.
            rows: ``train_dataset`` and ``eval_dataset`` (None without validation rows), of this task's features.
        """
        from transformers import Trainer, TrainingArguments

        from lorary.training.fitting.own_device import one_device

        arguments = one_device(TrainingArguments(**{**settings, "label_names": list(self.targets)}), model)
        criterion = self.criterion(rows["train_dataset"])
        return Trainer(
            model=model, args=arguments, data_collator=self.collator(tokenizer), compute_loss_func=criterion, **rows
        )

    def criterion(self, train: Any) -> Loss | None:
        """A loss in place of the model's own, for training and validation; ``train`` is the dataset of features."""
        return None

    def scaled(self, model: Any, train: Encoded, tokenizer: Any) -> AbstractContextManager[None]:
        """Around the steps: a task may train the head on other targets than it answers with in the end."""
        return nullcontext()

    def figures(self) -> dict[str, Any]:
        """What the trainer counted, for the provenance."""
        return {}

    def inputs(self, batch: Mapping[str, torch.Tensor]) -> Mapping[str, torch.Tensor]:
        """What of a batch is put before the model: all of it, unless the task's loss takes it apart."""
        return batch

    def loss(self, model: Any, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """A batch's loss: the model's own unless the task has another."""
        loss: torch.Tensor = model(**batch).loss
        return loss

    def sequences(self, features: Sequence[Feature]) -> Sequence[Feature]:
        """What a training step puts before the model for these rows: themselves, unless a task asks more of them."""
        return features

    def batched(self, features: Sequence[Feature]) -> Sequence[Feature]:
        """What batches of training rows are made of: these rows, unless several are put into one beforehand."""
        return features

    def widths(self, feature: Feature) -> tuple[int, ...]:
        """The tokens of a row's longest text of each kind that a batch pads by itself."""
        return (len(feature["input_ids"]),)

    def shortened(self, feature: Feature, length: int) -> Feature:
        """A row as a smaller ``max_length`` has it: every list that is as long as the tokens is cut with them."""
        tokens = len(feature["input_ids"])
        return {
            name: value[:length] if isinstance(value, list) and len(value) == tokens else value
            for name, value in feature.items()
        }

    @abstractmethod
    def outcome(self, logits: torch.Tensor, feature: Feature) -> Any:
        """What one row's logits ([classes], [tokens, classes] or [tokens, vocabulary]) come to, for the metrics."""

    def decide(self, outcomes: Sequence[Any], golds: Sequence[Any], note: Note) -> Sequence[Any]:
        """Called once after the last step, where ``decides``: settle how scores become answers.

        Args:
            outcomes: what the trained model makes of the validation rows; empty where there are none.
            golds: what these rows' answers should be.
            note: is told what was settled.

        Returns:
            The outcomes as they are from now on.
        """
        return outcomes

    @abstractmethod
    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """Every metric of the task, by name."""

    def measured_on(self, rows: Encoded) -> Iterable[Any]:
        """What the main metric holds outcomes against: two adapters compare where it is the same for both.

        It must not depend on an adapter's own affairs, such as the order of its labels.
        """
        return rows.golds

    def main_score(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> float:
        """The main metric alone."""
        return self.metrics(outcomes, golds)[self.main_metric]

    def scoring(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Callable[[Sequence[int]], float]:
        """:meth:`main_score` of any of these rows by their places, of which one may come up more than once."""
        return lambda places: self.main_score([outcomes[one] for one in places], [golds[one] for one in places])

    def is_scored(self, outcome: Any) -> bool:
        """Does the main metric read what a model made of a row?"""
        return True

    def majority(self, train: Sequence[Example], golds: Sequence[Any]) -> Metrics | None:
        """The metrics of always answering the most frequent label of the training rows; None without labels."""
        return None

    def caveats(self, golds: Sequence[Any]) -> Sequence[str]:
        """What to know of the metrics on these rows: a line for each that is left out or could be taken otherwise."""
        return ()

    def baselines(self, data: Sequence[Example], train: Encoded, test: Encoded, tokenizer: Any) -> dict[str, Metrics]:
        """The metrics of what learns next to nothing, by its name; ``data`` are the training rows."""
        majority = self.majority(data, test.golds)
        return {} if majority is None else {"majority": majority}

    def outcomes(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> list[Any]:
        """What a model makes of each row, in the rows' order."""
        return outcomes(model, self, rows, tokenizer, batch_size)

    def answer(self, example: Example, gold: Any, outcome: Any) -> Answer:
        """A row's input, gold and outcome as texts for people."""
        given = [_as_text(value) for role, value in example.values.items() if role not in TARGET_ROLES]
        return Answer(" | ".join(given), _as_text(gold), _as_text(outcome), gold == outcome)

    def answers(self, rows: Encoded, outcomes: Sequence[Any]) -> list[Answer]:
        """:meth:`answer` of each row."""
        asked = zip(rows.examples, rows.golds, outcomes, strict=True)
        return [self.answer(example, gold, outcome) for example, gold, outcome in asked]

    def losses(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Sequence[float] | None:
        """Each row's loss where the outcomes tell; None where only another pass over a row would."""
        return None

    def mistakes(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Mistakes | None:
        """Where answers are wrong, counted for the report; None where a task has nothing to count."""
        return None

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Any]:
        """The outcomes of an adapter that is loaded on a backbone, for the gate: from each row's token ids."""
        # One after the other: a long row's logits over a large vocabulary are hundreds of megabytes.
        return [self.outcome(backbone.logits([row["input_ids"]], name)[0], row) for row in rows.features]

    def golden(self, model: Any, rows: list[list[int]]) -> list[torch.Tensor]:
        """The logits of bare token rows as ``Backbone.logits`` gives them, float32 on the CPU."""
        return token_logits(model, rows)

    def gated(self, metrics: Metrics, dtype: str) -> Metrics:
        """Of the metrics, those that the gate may compare: that come out the same in arithmetic of ``dtype``."""
        return metrics

    def room(self, max_length: int) -> Room:
        """How long a row may be, and which settings say so."""
        return Room(f"{max_length} tokens", "training.max_length")


def _as_text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
