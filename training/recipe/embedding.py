"""Settings of feature extraction that contradict each other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lorary.training.recipe.raw import section
from lorary.training.recipe.tasks import TASK_FACTS


def embedding_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Settings of embeddings where another task makes none, and batches that hold nothing to compare."""
    task = str(values.get("task"))
    if task != "feature-extraction":
        for key, value in section(values, "embedding").items():
            if task in TASK_FACTS and value is not None:
                yield f"embedding.{key}", f"only feature-extraction has it; the task is {task}"
        return
    columns = section(section(values, "data"), "columns")
    if section(values, "training").get("batch_size") == 1 and columns.get("negative") is None:
        yield "training.batch_size", "rows are told from the others of their batch, so expected at least 2, found 1"
