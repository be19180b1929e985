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
    yield from _loss_problems(values)
    data, task, problem = section(values, "data"), values.get("task"), values.get("problem_type")
    if task in TASK_FACTS and task != "token-classification" and data.get("broken_tags") is not None:
        yield "data.broken_tags", f"only token-classification has tags; the task is {task}"
    columns, labels, separator = data.get("label_columns"), data.get("labels"), data.get("label_separator")
    if task in TASK_FACTS and task != "text-classification":
        for dotted, value in (
            ("problem_type", problem), ("data.label_columns", columns), ("data.unlabelled", data.get("unlabelled")),
            ("data.label_separator", separator),
        ):  # fmt: skip
            if value is not None:
                yield dotted, f"only text-classification has one; the task is {task}"
        return
    if problem == REGRESSION and labels is not None:
        yield "data.labels", "regression answers with a number and has no labels; leave one of them out"
    if separator is not None and problem not in (None, MULTI_LABEL):
        yield "problem_type", f"several labels a row (data.label_separator) are {MULTI_LABEL!r}, found {problem!r}"
    if separator is not None and columns is not None:
        yield "data.label_separator", "data.label_columns name the labels already; leave one of them out"
    if isinstance(columns, (list, tuple)):
        yield from _label_columns(columns, problem, labels, section(data, "columns").get("label"))


def _loss_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    training, task, problem = section(values, "training"), str(values.get("task")), values.get("problem_type")
    facts = TASK_FACTS.get(task)
    if facts is None:
        return
    for key in ("class_weights", "classifier_dropout"):
        if training.get(key) is not None and not facts.weighted:
            able = " and ".join(name for name, other in TASK_FACTS.items() if other.weighted)
            yield f"training.{key}", f"only {able} have a classifier; the task is {task}"
    if training.get("label_smoothing") and not facts.smoothed:
        able = " and ".join(name for name, other in TASK_FACTS.items() if other.smoothed)
        yield "training.label_smoothing", f"only the loss of {able} takes it; the task is {task}"
    if problem == REGRESSION and training.get("class_weights") is not None:
        yield "training.class_weights", "regression has no classes; leave one of them out"
    if problem in (REGRESSION, MULTI_LABEL) and training.get("label_smoothing"):
        yield "training.label_smoothing", f"only one label of several can be smoothed, the problem is {problem!r}"
    if training.get("class_weights") == {}:
        yield "training.class_weights", "the table is empty; give a label a weight, or say 'balanced'"
    yield from _threshold(values, training, problem)


def _threshold(values: Mapping[str, Any], training: Mapping[str, Any], problem: Any) -> Iterator[tuple[str, str]]:
    setting, key = training.get("threshold"), "training.threshold"
    if setting is None:
        return
    if values.get("task") != "text-classification":
        yield key, f"only text-classification with several labels a row has one; the task is {values.get('task')}"
    elif problem not in (None, MULTI_LABEL):
        yield key, f"only rows with several labels ({MULTI_LABEL}) have one, the problem is {problem!r}"
    elif setting == {}:
        yield key, "the table is empty; give a label a number between 0 and 1, or say 'tuned'"
    elif setting == "tuned" and training.get("early_stopping") == 0:
        yield key, "'tuned' needs validation rows, and training.early_stopping: 0 leaves none; leave one of them out"
    elif setting == "tuned" and section(values, "data").get("validation_size") == 0:
        yield key, "'tuned' needs validation rows, and data.validation_size: 0 leaves none; leave one of them out"
    elif setting == "tuned" and values.get("strategy") == "direct":
        yield key, "strategy 'direct' trains nothing and tunes no thresholds; give numbers, or leave it out"


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
