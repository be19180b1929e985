"""Answers of extractive question answering: where they stand in their context, in each form that rows come in.

SQuAD's own (Rajpurkar et al. 2016, 2018): ``answers`` holds the lists ``text`` and ``answer_start``, both empty where
the context has no answer; a list of ``{text, answer_start}`` as in SQuAD's files says the same. Files without nested
values (CSV) have the columns ``answer`` and ``answer_start``, both empty where there is no answer. Where files have
only the answers' texts (a list of them, or the column ``answer`` alone), each is where its context has it first.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorary.training.recipe.raw import shown

if TYPE_CHECKING:  # which knows roles, and so answers
    from lorary.training.data.examples import Example, Note


@dataclass(frozen=True)
class Answer:
    """A span of a context: its text, and its first character's place, counted from 0."""

    text: str
    start: int

    @property
    def end(self) -> int:
        """The place after its last character."""
        return self.start + len(self.text)


def answers_of(values: Mapping[str, Any]) -> tuple[Answer, ...]:
    """A checked row's answers, without blanks around them; none where the context has no answer."""
    if "answers" in values:
        texts, starts = _lists(values["answers"])
    else:
        texts, starts = [values["answer"] or ""], [values.get("answer_start")]
    pairs = zip(texts, starts, strict=True)
    context = values["context"]
    return tuple(
        Answer(text.strip(), context.find(text.strip())) if start is None else _trimmed(text, _place(start))
        for text, start in pairs
        if text.strip()
    )


def note_places(examples: Sequence[Example], note: Note) -> None:
    """Tell ``note`` of rows that have no places of their answers, which their contexts have several times."""
    found = [
        example
        for example in examples
        if _is_bare(example.values)
        and any(example.values["context"].count(answer.text) > 1 for answer in answers_of(example.values))
    ]
    if found:
        note(
            f"{len(found)} of {len(examples)} rows have answers without places that their contexts hold several times "
            f"(first: {found[0].place}); the first place is learned"
        )


def _is_bare(values: Mapping[str, Any]) -> bool:
    """Does a row have its answers' texts alone?"""
    answers = values.get("answers")
    return "answer_start" not in values if "answer" in values else isinstance(answers, list) and _are_texts(answers)


def _are_texts(answers: Sequence[Any]) -> bool:
    return bool(answers) and all(isinstance(answer, str) for answer in answers)


def squad_rows(value: Any) -> list[Any] | None:
    """The questions of a file as SQuAD's own are, each beside its context; None of any other value.

    Its articles are paragraphs, a context and the questions about it each: https://rajpurkar.github.io/SQuAD-explorer.
    """
    articles = value.get("data") if isinstance(value, Mapping) else None
    if not isinstance(articles, list):
        return None
    try:
        return [
            {"context": paragraph["context"], **question}
            for article in articles
            for paragraph in article["paragraphs"]
            for question in paragraph["qas"]
        ]
    except (TypeError, KeyError):
        return None


def _place(start: int | float | str) -> int:
    return start if isinstance(start, int) else int(float(start))


def _trimmed(text: str, start: int) -> Answer:
    return Answer(text.strip(), start + len(text) - len(text.lstrip()))


def _lists(value: Any) -> tuple[Any, Any]:
    if isinstance(value, list) and _are_texts(value):
        return value, [None] * len(value)
    if isinstance(value, list):
        return [answer["text"] for answer in value], [answer["answer_start"] for answer in value]
    return value["text"], value["answer_start"]


def answers_problem(value: Any) -> str | None:
    """What is wrong with the shape of an ``answers`` value, or None."""
    try:
        texts, starts = _lists(value)
    except (TypeError, KeyError, IndexError):
        return (
            f"expected {{text: [...], answer_start: [...]}}, found {shown(value)}; a file without nested values has "
            "the columns answer and answer_start, or answer alone (name question, context and these in data.columns)"
        )
    if not isinstance(texts, list) or not isinstance(starts, list):
        return f"expected lists as text and answer_start, found {shown(texts)} and {shown(starts)}"
    if len(texts) != len(starts):
        return f"{len(texts)} texts but {len(starts)} starts"
    for place, (text, start) in enumerate(zip(texts, starts, strict=True), start=1):
        if not isinstance(text, str) or not text.strip():
            return f"answer {place} is {shown(text)}; a question without an answer has empty lists"
        if not _is_whole(start) and not (start is None and isinstance(value, list) and _are_texts(value)):
            return f"answer {place} starts at {shown(start)}, expected the place of its first character"
    return None


def answer_problem(value: Any) -> str | None:
    """What is wrong with an ``answer``, or None; an empty one says that there is no answer."""
    return None if value is None or isinstance(value, str) else f"expected a text, found {shown(value)}"


def start_problem(value: Any) -> str | None:
    """What is wrong with an ``answer_start``, or None; a CSV file's is a text.

    Data frames write place 7 as 7.0 where a column has gaps.
    """
    number = re.fullmatch(r"\s*(-?\d{1,15}(\.0)?\s*)?", value) if isinstance(value, str) else _is_whole(value)
    return None if value is None or number else f"expected a whole number, found {shown(value)}"


def _is_whole(value: Any) -> bool:
    return type(value) is int or (isinstance(value, float) and value.is_integer())


def misplaced(values: Mapping[str, Any]) -> str | None:
    """Which answer doesn't stand in the context where its row says, and where it does; None where all do."""
    if "answer_start" in values and (values["answer"] or "").strip() and values["answer_start"] in (None, ""):
        return "has an answer but no answer_start"
    context = values["context"]
    for answer in answers_of(values):
        if answer.start < 0 and _is_bare(values):
            return f"answer {shown(answer.text)} doesn't stand in the context; copy it from there, letter by letter"
        if answer.start < 0 or context[answer.start : answer.end] != answer.text:
            return (
                f"answer {shown(answer.text)} doesn't stand at {answer.start} of the context{_instead(answer, context)}"
            )
    return None


def _instead(answer: Answer, context: str) -> str:
    places = []
    place = context.find(answer.text)
    while place >= 0:
        places.append(place)
        place = context.find(answer.text, place + 1)
    if not places:
        return ", nor anywhere in it; an answer is copied from the context, letter by letter"
    nearest = min(places, key=lambda one: abs(one - answer.start))
    there = shown(context[max(0, answer.start) : max(0, answer.end)])
    return f", where {there} stands; the nearest is at {nearest} (counted in characters, from 0)"
