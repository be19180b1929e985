"""The places that a recipe names: whose home they are in, and the run's own folder, which isn't there yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lorary.hub.errors import RecipeError
from lorary.training.recipe.explain import where
from lorary.training.recipe.raw import RawRecipe, in_order, section

INCOMPLETE = ".incomplete"
"""What the name of a run's folder ends with until the run is finished."""


_PATHS = ("base", "output", "data.train", "data.test", "data.validation", "tokens.add")


def demand_homes(raw: RawRecipe) -> None:
    """Refuse paths into the home folder of a user that there isn't (``~nobody/rows.jsonl``), before any is looked at.

    Raises:
        RecipeError: each of them.
    """
    problems = []
    for dotted in _PATHS:
        section_name, _, key = dotted.rpartition(".")
        value = (section(raw.values, section_name) if section_name else raw.values).get(key)
        if isinstance(value, str) and value.startswith("~"):
            try:
                Path(value).expanduser()
            except RuntimeError:
                problems.append(f"{where(raw, dotted)}{dotted}: {value!r}: no such user's home folder is known")
    if problems:
        raise RecipeError(raw.source, in_order(problems))


def place_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """An ``output`` that is there already, unless it has the files of a run that aren't in the catalogue yet."""
    output = values.get("output")
    if not isinstance(output, str) or not output:
        return
    folder = Path(output).expanduser()
    waits = Path(f"{folder}{INCOMPLETE}").is_dir()
    there = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if folder.name in ("", "..") or (there and not waits):
        yield "output", f"{output!r} is there already; name a folder that isn't, or remove it"
