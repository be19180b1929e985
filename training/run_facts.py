"""What a run that isn't finished keeps in JSON files, and whether they are whole.

That is ``run.json``, on which its result depends beside its recipe, and what came out of those of its parts that are
done. Runs write such files themselves and in one step, so what else is in them was put there by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lorary.hub.errors import TrainingError
from lorary.hub.jsontext import load_json
from lorary.training.recipe.raw import shown

Check = Callable[[Any], str | None]


def read_facts(path: Path) -> dict[str, Any]:
    """What was written down of a run when it began, and since.

    Raises:
        TrainingError: it can't be read, a fact is missing, or one isn't what it has to be.
    """
    return _read(path, _BEGUN_WITH, _SINCE, broken)


def read_metrics(path: Path) -> dict[str, dict[str, float]]:
    """A run's metrics by split and name. Raises TrainingError where the file holds something else."""
    found = _read(path, {}, {}, broken)
    if problem := metric_tables(found):
        raise broken(path, problem)
    return found


def read_part(path: Path, expected: Mapping[str, Check], since: Mapping[str, Check] | None = None) -> dict[str, Any]:
    """What a run keeps of a part that is done.

    Args:
        path: its file.
        expected: what is there from the first, with the check of each.
        since: what may come later.

    Raises:
        TrainingError: as :func:`read_facts`; such a file can be removed by itself.
    """
    return _read(path, expected, since or {}, _broken_part)


def _read(
    path: Path, expected: Mapping[str, Check], since: Mapping[str, Check], wrong: Callable[[Path, str], TrainingError]
) -> dict[str, Any]:
    try:
        found = load_json(path.read_bytes())
    except OSError as error:
        raise wrong(path, f"can't be read ({error.strerror or error})") from error
    except ValueError as error:
        raise wrong(path, f"not valid JSON ({error})") from error
    if problem := a_table(found, "a table of facts"):
        raise wrong(path, problem)
    if missing := [key for key in expected if key not in found]:
        raise wrong(path, "has " + ", ".join(f"no {key!r}" for key in missing))
    for key, check in {**expected, **since}.items():
        if key in found and (problem := check(found[key])):
            raise wrong(path, f"{key}: {problem}")
    return dict(found)


def broken(path: Path, problem: str) -> TrainingError:
    """The error for a file of a run that says what no run writes."""
    return TrainingError(f"{path}: {problem}; put it back as it was, or remove {path.parent} and start anew")


def _broken_part(path: Path, problem: str) -> TrainingError:
    return TrainingError(f"{path}: {problem}; put it back as it was, or remove it, and what it keeps is made again")


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


def metric_tables(value: Any) -> str | None:
    """What is wrong with a value that has to be numbers by split and name."""
    if problem := a_table(value):
        return problem
    for split, named in value.items():
        if problem := a_table(named):
            return f"{split}: {problem}"
        for name, number in named.items():
            if not isinstance(number, (int, float)) or isinstance(number, bool):
                return f"{split}, {name}: expected a number, found {shown(number)}"
    return None


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
