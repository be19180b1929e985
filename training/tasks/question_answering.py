"""Extractive question answering: the span of a context that answers a question, or that there is none (SQuAD).

A context that is too long is read in windows, cut by the function that ``predict`` cuts them with, and an answer is
chosen by the code that ``predict`` chooses it with: what is measured is what a user will get.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lorary.adapters import Backbone
from lorary.adapters.predict.base import Setting
from lorary.adapters.predict.question_answering import QuestionAnsweringRows, Window, windows
from lorary.hub.errors import DataError, TrainingError, UsageError
from lorary.hub.manifest import Answering, Preprocessing
from lorary.training.data import Example, Note
from lorary.training.data.shapes.answers import Answer, answers_of
from lorary.training.fitting.evaluate import logits_by_row
from lorary.training.recipe import Recipe
from lorary.training.recipe.raw import shown
from lorary.training.report.content import Mistakes
from lorary.training.tasks.base import Answer as ShownAnswer
from lorary.training.tasks.base import Metrics, Task
from lorary.training.tasks.metrics.squad import best, exact, overlap
from lorary.training.tasks.rows.coding import Coded
from lorary.training.tasks.rows.encoded import Encoded, Feature
from lorary.training.tasks.rows.padding import pad_right

_SILENCE = "(no answer)"
_FATES = ("right", "partly right", "wrong", "not answered")


class QuestionAnswering(Task):
    """A start and an end for each question, with a fresh head (Devlin et al. 2019, section 4.2 and 4.3)."""

    name = "question-answering"
    peft_task_type = "QUESTION_ANS"
    main_metric = "f1"
    targets = ("start_positions", "end_positions")
    windowed = True

    def __init__(self, recipe: Recipe, labels: tuple[str, ...] | None) -> None:
        super().__init__(recipe, labels)
        self._impossible = False
        self._limit = recipe.training.max_length

    def begin(self, train: Sequence[Example]) -> None:
        """Where a training row has no answer, "no answer" is one that the adapter may give."""
        self._impossible = any(not answers_of(example.values) for example in train)

    def auto_class(self) -> Any:
        """``AutoModelForQuestionAnswering``."""
        from transformers import AutoModelForQuestionAnswering

        return AutoModelForQuestionAnswering

    def look(self, examples: Sequence[Example], tokenizer: Any, max_length: int) -> None:
        """Raises TrainingError where the tokenizer can't say where its pieces come from."""
        if not getattr(tokenizer, "is_fast", False):
            raise TrainingError("question-answering needs a fast tokenizer (a tokenizer.json beside the base)")
        self._limit = max_length

    def code(self, example: Example, tokenizer: Any, max_length: int) -> Coded:
        """A question with each window of its context; one that doesn't show the answer shows that there is none.

        Of several answers, SQuAD's for held-out rows, the first is learned and any counts.

        Raises:
            DataError: the question leaves no room for its context, or the answer has no tokens.
        """
        answers = answers_of(example.values)
        question, context = example.values["question"], example.values["context"]
        try:
            made = windows(tokenizer, question, context, limit=max_length, stride=self.recipe.training.stride)
        except UsageError as error:
            raise DataError("rows", [f"{example.place}: {_in_recipe_words(error)}"]) from error
        targets = _targets(made, answers[0] if answers else None, len(context))
        nowhere = [(window.null, window.null) for window in made]
        if answers and targets == nowhere:
            raise DataError(
                "rows",
                [
                    f"{example.place}: the answer {shown(answers[0].text)} comes to no token of the base's tokenizer, "
                    "so it would be learned as none; give it a text that can be seen, or empty lists"
                ],
            )
        return Coded(
            tuple(
                {**window.encoding, "start_positions": first, "end_positions": last}
                for window, (first, last) in zip(made, targets, strict=True)
            )
        )

    def gold(self, example: Example, row: Coded) -> tuple[Answer, ...]:
        """Every right answer; none where there is none."""
        return answers_of(example.values)

    def remark(self, encoded: Encoded, rows: Sequence[Coded], tokenizer: Any, note: Note) -> None:
        """Contexts in windows, and answers that are too long to be given."""
        several = sum(len(row.features) > 1 for row in rows)
        if several:
            note(
                f"{several} of {len(rows)} contexts are longer than {self._limit} tokens (training.max_length) and "
                f"are read in windows: {len(encoded.features)} windows in all"
            )
        longest = self.answering().max_tokens
        long = sum(
            any(one["end_positions"] - one["start_positions"] >= longest for one in row.features) for row in rows
        )
        if long:
            note(
                f"{long} of {len(rows)} answers are longer than {longest} tokens, so they can't be given whole "
                "(training.max_answer_length)"
            )

    def collator(self, tokenizer: Any) -> Callable[[list[Feature]], dict[str, torch.Tensor]]:
        """Pads on the right, whichever side the tokenizer pads on: answers are places in their row."""
        return pad_right(tokenizer)

    def outcome(self, logits: torch.Tensor, feature: Feature) -> Any:
        """A window by itself has no answer: :meth:`outcomes` reads all of a row's."""
        raise NotImplementedError

    def outcomes(self, model: Any, rows: Encoded, tokenizer: Any, batch_size: int) -> list[Any]:
        """The answer to each row, empty for none, chosen as ``predict`` chooses it."""
        setting = Setting(
            model=None,
            tokenizer=tokenizer,
            preprocessing=self.preprocessing(self._limit),
            pooling=None,
            longest=None,
            answering=self.answering(),
        )
        reader = QuestionAnsweringRows(setting, {})
        found: dict[int, str] = {}
        for row, logits in logits_by_row(model, self, rows, tokenizer, batch_size):
            # Cut again rather than kept: the places of a hundred thousand rows' tokens would fill the memory.
            pieces = reader.encode(self._asked(rows.examples[row]))
            found[row] = reader.decode(pieces, [one.float().cpu() for one in logits])["answer"]
        return [found[row] for row in range(len(rows.examples))]

    def _asked(self, example: Example) -> dict[str, str]:
        columns = self.recipe.data.columns.named()
        return {columns[role]: example.values[role] for role in ("question", "context")}

    def metrics(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Metrics:
        """SQuAD's ``exact_match`` and ``f1``, means over the rows, from 0 to 1.

        Where some rows have no answer, also those of the rows with one (``HasAns_``) and without (``NoAns_``).
        """
        texts = [[answer.text for answer in gold] for gold in golds]
        scores = [
            (best(exact, outcome, gold), best(overlap, outcome, gold), bool(gold))
            for outcome, gold in zip(outcomes, texts, strict=True)
        ]
        found = _means("", scores)
        if not all(has for _, _, has in scores):
            for prefix, wanted in (("HasAns_", True), ("NoAns_", False)):
                part = [score for score in scores if score[2] is wanted]
                found |= _means(prefix, part) if part else {}
        return found

    def answer(self, example: Example, gold: Any, outcome: Any) -> ShownAnswer:
        """Question and context; the right answers; the one that was given."""
        texts = [answer.text for answer in gold]
        given = f"{example.values['question']} | {example.values['context']}"
        expected = " / ".join(dict.fromkeys(texts)) or _SILENCE
        return ShownAnswer(given, expected, outcome or _SILENCE, bool(best(exact, outcome, texts)))

    def mistakes(self, outcomes: Sequence[Any], golds: Sequence[Any]) -> Mistakes | None:
        """What became of the questions with an answer, and of those without."""
        counts = {kind: [0] * len(_FATES) for kind in ("with an answer", "without one")}
        for outcome, gold in zip(outcomes, golds, strict=True):
            texts = [answer.text for answer in gold]
            if best(exact, outcome, texts):
                fate = "right"
            elif not outcome:
                fate = "not answered"
            else:
                fate = "partly right" if gold and best(overlap, outcome, texts) else "wrong"
            counts["with an answer" if gold else "without one"][_FATES.index(fate)] += 1
        kinds = tuple(kind for kind, row in counts.items() if any(row))
        return Mistakes(kind="spans", rows=kinds, columns=_FATES, counts=tuple(tuple(counts[kind]) for kind in kinds))

    def majority(self, train: Sequence[Example], golds: Sequence[Any]) -> Metrics | None:
        """The metrics of never giving an answer; None where every training row has one."""
        return self.metrics([""] * len(golds), golds) if self._impossible else None

    def through(self, backbone: Backbone, name: str, rows: Encoded) -> list[Any]:
        """The answers that ``predict`` gives the rows themselves."""
        asked = [self._asked(example) for example in rows.examples]
        return [answer["answer"] for answer in backbone.predict(asked, name, batch_size=1)]

    def preprocessing(self, max_length: int) -> Preprocessing:
        """The columns, a window's tokens, and by how many of them windows overlap."""
        return Preprocessing(self.recipe.data.columns.named(), max_length, stride=self.recipe.training.stride)

    def answering(self) -> Answering:
        """The longest answer, and whether there may be none."""
        longest = self.recipe.training.max_answer_length
        assert longest is not None  # the task's facts have a default
        return Answering(longest, self._impossible)


def _targets(made: Sequence[Window], answer: Answer | None, length: int) -> list[tuple[int, int]]:
    """The answer's first and last token in each window, the "no answer" token's place where a window doesn't show it.

    A window has to show all of it. Where none does, as it is longer than windows overlap, each shows what it has.
    """
    whole = [_place(window, answer, index == 0, index == len(made) - 1, length) for index, window in enumerate(made)]
    if answer is not None and not any(whole):
        whole = [_overlapping(window, answer) for window in made]
    return [place or (window.null, window.null) for place, window in zip(whole, made, strict=True)]


def _place(window: Window, answer: Answer | None, first: bool, last: bool, length: int) -> tuple[int, int] | None:
    """Where a window shows all of an answer; characters before its first token, of blanks say, belong to the first."""
    spans = [span for span in window.spans if span is not None]
    if answer is None or not spans:
        return None
    begin, end = 0 if first else spans[0][0], length if last else spans[-1][1]
    return _overlapping(window, answer) if begin <= answer.start and answer.end <= end else None


def _overlapping(window: Window, answer: Answer) -> tuple[int, int] | None:
    """The first and the last token that share a character with the answer."""
    places = [
        place
        for place, span in enumerate(window.spans)
        if span is not None and span[0] < answer.end and answer.start < span[1]
    ]
    return (places[0], places[-1]) if places else None


def _means(prefix: str, scores: Sequence[tuple[float, float, bool]]) -> Metrics:
    return {
        f"{prefix}exact_match": sum(score[0] for score in scores) / len(scores),
        f"{prefix}f1": sum(score[1] for score in scores) / len(scores),
    }


def _in_recipe_words(error: UsageError) -> str:
    """What the windows' function says, with the recipe's names for the call's parameters."""
    text = str(error).replace("doc_stride=", "training.stride ")
    return text.replace("shorten it", "shorten it, or raise training.max_length")
