"""Settings about labels that contradict each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from lorary.hub.manifest import MULTI_LABEL, REGRESSION
from lorary.training.recipe.raw import section
from lorary.training.recipe.tasks import TASK_FACTS


def label_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Each key with what is wrong with it: the problem type, and where the labels stand."""
    data, task, problem = section(values, "data"), values.get("task"), values.get("problem_type")
    columns, labels = data.get("label_columns"), data.get("labels")
    if task in TASK_FACTS and task != "text-classification":
        for dotted, value in (("problem_type", problem), ("data.label_columns", columns)):
            if value is not None:
                yield dotted, f"only text-classification has one; the task is {task}"
        return
    if problem == REGRESSION and labels is not None:
        yield "data.labels", "regression answers with a number and has no labels; leave one of them out"
    if isinstance(columns, (list, tuple)):
        yield from _label_columns(columns, problem, labels, section(data, "columns").get("label"))


def _label_columns(columns: Any, problem: Any, labels: Any, label: Any) -> Iterator[tuple[str, str]]:
    twice = sorted(str(name) for name, count in Counter(map(str, columns)).items() if count > 1)
    if not columns:
        yield "data.label_columns", "the list is empty; name the columns of 0 and 1, or use data.columns.label"
    if twice:
        yield "data.label_columns", f"{', '.join(map(repr, twice))} is listed twice"
    if label is not None:
        yield "data.label_columns", "data.columns.label names a column of labels already; leave one of them out"
    if labels is not None:
        yield "data.labels", "data.label_columns are the labels already, in order; leave one of them out"
    if problem not in (None, MULTI_LABEL):
        yield "problem_type", f"columns of 0 and 1 (data.label_columns) are {MULTI_LABEL!r}, found {problem!r}"
