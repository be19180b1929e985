"""One row as a task's tokenizer sees it: what a run learns from it, and what only tokenizing it tells."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lorary.hub.errors import DataError
from lorary.training.data import Example
from lorary.training.data.files.source import report
from lorary.training.recipe import Recipe
from lorary.training.tasks.rows.lengths import Length
from lorary.training.tasks.rows.token_cache import TokenCache

if TYPE_CHECKING:
    from lorary.training.tasks.base import Task


@dataclass(frozen=True)
class Coded:
    """A row's ``features`` (one, or one for each window), and its :class:`Length` where the task cuts rows.

    ``known`` are numbers that golds and notes need, and that only the tokenizer knows.
    """

    features: tuple[dict[str, Any], ...]
    length: Length | None = None
    known: tuple[int, ...] = ()

    def record(self) -> dict[str, Any]:
        """As plain values, for a table."""
        length = self.length
        told = None if length is None else [length.full, length.kept, int(length.learned)]
        return {"features": list(self.features), "length": told, "known": list(self.known)}

    @classmethod
    def of(cls, record: dict[str, Any]) -> Coded:
        """The row that :meth:`record` told."""
        told = record["length"]
        length = None if told is None else Length(told[0], told[1], bool(told[2]))
        return cls(tuple(record["features"]), length, tuple(record["known"]))


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """The settings that may bear on token ids: all but those that are known not to, so that a new one counts."""
    return recipe.model_dump(mode="json", exclude=_ELSEWHERE)


_ELSEWHERE: dict[str, Any] = {
    **dict.fromkeys(
        (
            "name", "domain", "base", "revision", "strategy", "from_", "start", "method", "quantization",
            "double_quantization", "lora", "peft", "preference", "generation", "embedding", "report", "output", "tags",
            "alias", "device", "device_map", "dtype",
        ),
        True,
    ),
    "data": {
        "train", "test", "validation", "test_size", "validation_size", "subset", "train_split", "test_split",
        "validation_split", "revision", "license", "language", "too_long", "broken_tags", "sample_by",
        "header", "separator", "encoding", "incomplete", "unlabelled", "label_separator",
        "sentence_column",
    },
    "training": {
        "epochs", "min_steps", "max_steps", "batch_size", "gradient_accumulation", "learning_rate", "warmup",
        "weight_decay", "class_weights", "label_smoothing", "classifier_dropout", "threshold", "max_grad_norm",
        "scheduler", "seed", "early_stopping", "best_by", "lora_plus_ratio", "seeds", "folds", "packing",
        "gradient_checkpointing", "group_by_length", "checkpoint_steps", "max_answer_length", "mean_span",
    },
}  # fmt: skip


@contextmanager
def _uncollected() -> Iterator[None]:
    """Rows become millions of small lists, all of which stay: Python's collector would walk them over and over."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def code_rows(
    task: Task, examples: Sequence[Example], tokenizer: Any, max_length: int, cache: TokenCache | None
) -> list[Coded]:
    """Each row through the task's ``code``, or as ``cache`` has it from an earlier run.

    Raises:
        DataError: every row that can't be turned into token ids, by its file and number.
    """

    def code(places: Sequence[int]) -> list[Coded]:
        return _each(lambda place: task.code(examples[place], tokenizer, max_length), places)

    key = cache.key(task.coding(tokenizer, max_length), tokenizer) if cache else None
    if cache is None or key is None:
        return code(range(len(examples)))
    records = cache.rows(
        key, [example.digest for example in examples], lambda places: [one.record() for one in code(places)]
    )
    return [Coded.of(record) for record in records]


def _each(code: Callable[[int], Coded], places: Sequence[int]) -> list[Coded]:
    found: list[Coded] = []
    problems: list[str] = []
    for place in places:
        try:
            found.append(code(place))
        except DataError as error:
            problems += error.problems
    if problems:
        raise report("rows", problems)
    return found
