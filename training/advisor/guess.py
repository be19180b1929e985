"""The task that a data file's columns speak of, where the user doesn't say."""

from __future__ import annotations

from pathlib import Path

from lorary.hub.errors import UsageError
from lorary.training.data.files.source import read_source
from lorary.training.recipe.corpus import is_text
from lorary.training.recipe.raw import some
from lorary.training.recipe.tasks import TASK_FACTS


def guess_task(data: str) -> tuple[str, dict[str, str]]:
    """The task whose columns these rows have, by their usual names, and the columns.

    The form of rows with the most columns counts: a question, its context and answers are no plain text.

    Raises:
        DataError: no row can be read.
        UsageError: the columns fit several tasks, or none.
    """
    if is_text(data):
        labels = "its folders are labels" if Path(data).is_dir() else "its lines begin with their labels"
        classes = f", or --task text-classification where {labels}"
        raise UsageError(f"{data} is running text: pass --task fill-mask or --task text-generation{classes}")
    source = read_source(data)
    columns = set(source.rows[0].values)
    forms = [(task, form) for task, facts in TASK_FACTS.items() for form in facts.forms if form <= columns]
    most = max((len(form) for _, form in forms), default=0)
    fitting = {task: form for task, form in forms if len(form) == most}
    if len(fitting) != 1:
        fits = f"fit {' and '.join(fitting)}" if fitting else "fit no task by their names"
        raise UsageError(f"{data} has the columns {some(sorted(columns))}, which {fits}; pass --task")
    ((task, form),) = fitting.items()
    return task, {role: role for role in sorted(form)}
