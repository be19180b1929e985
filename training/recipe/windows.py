"""Settings of question answering: long contexts are read in windows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorary.training.recipe.raw import section
from lorary.training.recipe.tasks import TASK_FACTS


def window_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Windows that can't be cut, and settings of them where another task has none: key and message."""
    training, task = section(values, "training"), str(values.get("task"))
    if task != "question-answering":
        for key in ("stride", "max_answer_length"):
            if task in TASK_FACTS and training.get(key) is not None:
                yield f"training.{key}", f"only question-answering cuts contexts into windows; the task is {task}"
        return
    if section(values, "data").get("too_long") not in (None, "truncate"):
        yield "data.too_long", "question-answering reads a long context in windows, so no row is cut; leave it out"
    stride, longest = training.get("stride"), training.get("max_length")
    if isinstance(stride, int) and isinstance(longest, int) and stride >= longest:
        yield "training.stride", f"windows of training.max_length {longest} tokens can't overlap by {stride}; lower it"
