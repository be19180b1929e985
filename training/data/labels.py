"""The label names of a task: those that a recipe lists, or those of the training rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from lorary.hub.errors import DataError
from lorary.training.data.examples import Example
from lorary.training.data.files import report
from lorary.training.recipe.raw import nearest, shown


def find_labels(
    parts: dict[str, tuple[Example, ...]], columns: Mapping[str, str], given: tuple[str, ...] | None
) -> tuple[str, ...]:
    """The label names in the order of their ids; makes names of the numbers in ``parts``."""
    role = "label" if "label" in columns else "tags"
    for part, examples in parts.items():
        parts[part] = tuple(_with_names(example, role, given) for example in examples)
    if given is not None:
        repeated = sorted(name for name, count in Counter(given).items() if count > 1)
        if repeated:
            raise DataError("data.labels", [f"{name!r} is listed twice" for name in repeated])
        labels = given
    else:
        labels = tuple(sorted({name for example in parts["train"] for name in _names(example, role)}, key=_order))
    known = set(labels)
    problems = [
        f"{example.place}, {columns[role]}: unknown label {shown(name)}; "
        + ("data.labels has" if given is not None else "the training rows have")
        + f" {_some(labels)}{nearest(name, labels)}"
        for examples in parts.values()
        for example in examples
        for name in dict.fromkeys(_names(example, role))
        if name not in known
    ]
    if problems:
        raise report("labels", problems)
    used = {name for example in parts["train"] for name in _names(example, role)}
    if len(used) < 2:
        raise DataError("labels", [f"every training row has the label {_some(sorted(used))}; expected at least two"])
    return labels


def _with_names(example: Example, role: str, given: tuple[str, ...] | None) -> Example:
    def name(value: str | int) -> str:
        if isinstance(value, int) and given is not None and 0 <= value < len(given):
            return given[value]
        return str(value)

    value = example.values[role]
    named = [name(item) for item in value] if isinstance(value, list) else name(value)
    return Example({**example.values, role: named}, example.place)


def _names(example: Example, role: str) -> Sequence[str]:
    value = example.values[role]
    return value if isinstance(value, list) else [value]


def _order(name: str) -> tuple[int, int, str]:
    """Numbers by value, before names by alphabet: '10' follows '9'."""
    return (0, int(name), name) if name.lstrip("-").isdecimal() else (1, 0, name)


def _some(names: Sequence[str], most: int = 12) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
