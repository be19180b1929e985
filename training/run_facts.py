"""``run.json`` of a run that isn't finished: what its result depends on beside its recipe, and whether it is whole.

Runs write it themselves and in one step, so what else is in it was put there by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorary.hub.errors import TrainingError
from lorary.hub.jsontext import load_json
from lorary.training.recipe.raw import shown

Check = Callable[[Any], str | None]


def read_table(path: Path) -> dict[str, Any]:
    """The JSON table that a run has in a file.

    Raises:
        TrainingError: it can't be read, or is something else.
    """
    try:
        found = load_json(path.read_bytes())
    except OSError as error:
        raise broken(path, f"can't be read ({error.strerror or error})") from error
    except ValueError as error:
        raise broken(path, f"not valid JSON ({error})") from error
    if problem := a_table(found, "a table of facts"):
        raise broken(path, problem)
    return dict(found)


def read_facts(path: Path) -> dict[str, Any]:
    """What was written down of a run when it began, and since.

    Raises:
        TrainingError: as :func:`read_table`; or a fact is missing, or isn't what it has to be.
    """
    facts = read_table(path)
    if missing := [key for key in _BEGUN_WITH if key not in facts]:
        raise broken(path, "has " + ", ".join(f"no {key!r}" for key in missing))
    for key, check in {**_BEGUN_WITH, **_SINCE}.items():
        if key in facts and (problem := check(facts[key])):
            raise broken(path, f"{key}: {problem}")
    return facts


def broken(path: Path, problem: str) -> TrainingError:
    """The error for a file of a run that says what no run writes."""
    return TrainingError(f"{path}: {problem}; put it back as it was, or remove {path.parent} and start anew")


def a_table(value: Any, expected: str = "a table") -> str | None:
    """What is wrong with a value that has to be one."""
    return None if isinstance(value, Mapping) else f"expected {expected}, found {shown(value)}"


def a_count(value: Any) -> str | None:
    """What is wrong with a value that has to be a number of things, of which there is one at least."""
    whole = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return None if whole else f"expected a whole number from 1 on, found {shown(value)}"


def a_text(expected: str) -> Check:
    """The check of a value that has to be a text, which ``expected`` names."""
    return lambda value: None if isinstance(value, str) else f"expected {expected}, found {shown(value)}"


def or_null(check: Check) -> Check:
    """The check of a value that may be missing."""
    return lambda value: None if value is None else check(value)


_BEGUN_WITH: Mapping[str, Check] = {
    "command": a_text("the words of a command"),
    "data": a_table,
    "parent": or_null(a_text("a digest or null")),
    "processes": a_count,
    "environment": a_table,
}
_SINCE: Mapping[str, Check] = {"base": a_text("a fingerprint"), "options": a_table}
