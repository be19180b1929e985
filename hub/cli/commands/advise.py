"""``lorary advise``: which strategy and settings fit some rows, by measurements that take no training."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.cli.advice import advice_json, show_advice
from lorary.hub.cli.next_commands import print_next
from lorary.hub.cli.options import (
    BaseOption,
    DataOption,
    DeviceMapOption,
    DeviceOption,
    JsonOption,
    MemoryOption,
    RegistryOption,
    SetOption,
    given_memory,
    given_path,
    open_registry,
)
from lorary.hub.cli.output import print_json, print_line, print_note
from lorary.hub.errors import InvalidReferenceError, OutputError, UsageError
from lorary.hub.reference import normalise_domain

if TYPE_CHECKING:
    from lorary.training.advisor.advise import Advice

EXAMPLES = (
    "lorary advise --base org/base --data train.jsonl",
    "lorary advise --base org/base --data train.jsonl --write tone.yaml",
    "lorary advise recipe.yaml --memory 24GB",
)

_GENERAL = frozenset({"train", "data", "dataset", "rows", "training"})


def command(
    recipe: Annotated[
        Path | None,
        typer.Argument(parser=given_path, metavar="RECIPE.yaml", help="What is to be trained; or flags alone."),
    ] = None,
    set_: SetOption = None,
    base: BaseOption = None,
    data: DataOption = None,
    test: Annotated[str | None, typer.Option(help="Held-out rows, which are counted and otherwise left alone.")] = None,
    task: Annotated[str | None, typer.Option(help="Default: what the columns' names say.")] = None,
    domain: Annotated[str | None, typer.Option(help="The subject matter; its adapters are tried first.")] = None,
    name: Annotated[str | None, typer.Option(help="The adapter's name; default by the data's.")] = None,
    rows: Annotated[int, typer.Option(min=20, help="How many training rows are measured on, at most.")] = 500,
    starts: Annotated[int, typer.Option(min=0, help="How many adapters are tried as a start, at most.")] = 8,
    memory: MemoryOption = None,
    write: Annotated[
        Path | None, typer.Option(parser=given_path, metavar="FILE.yaml", help="Write the advised recipe there.")
    ] = None,
    device: DeviceOption = None,
    device_map: DeviceMapOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Measure which start and settings fit some rows.

    Which adapter to start from, if any, and which settings; whether spelling alone would do, and whether more rows
    would help. Each advice has the measurement that speaks for it. Takes about as long as reading the rows once with
    each adapter; nothing is trained or registered.
    """
    available = given_memory(memory)
    if write is not None:
        _check_place(write)
    flags: dict[str, Any] = {
        "base": base, "data.train": data, "data.test": test, "task": task, "domain": domain, "name": name,
        "device": device, "device_map": device_map,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None}
    if recipe is None and not {"base", "data.train"} <= given.keys():
        raise UsageError(f"expected a recipe, or --base and --data; for example: {EXAMPLES[0]}")
    catalogue = open_registry(registry)
    from lorary.training.recipe import Recipe

    if recipe is not None:
        settings = Recipe.load(recipe, set_ or (), given)
    else:
        settings = Recipe.from_flags(_guessed(given, set_ or ()), set_ or ())
    from lorary.training.advisor.advise import advise
    from lorary.training.advisor.written import recipe_text
    from lorary.training.progress import BarReporter

    with BarReporter(settings.name) as reporter:
        found = advise(settings, catalogue, rows=rows, starts=starts, memory=available, progress=reporter)
    if as_json:
        print_json({**advice_json(found), "notices": reporter.notices})
    else:
        show_advice(found)
    if write is not None:
        _write(write, recipe_text(found))
        print_note(f"Recipe: {write}", aside=as_json)
    if not as_json:
        print_line("")
        print_next(_next(found, recipe, write, given, set_ or ()), catalogue.path)
        if recipe is None and write is None:
            print_line("With --write FILE.yaml the advised recipe is written for `lorary train`.")


_MANNER = ("data.header", "data.separator", "data.encoding", "data.sentence_column")
"""Settings that say how files are read which don't say it themselves."""


def _check_place(place: Path) -> None:
    """Raise UsageError where no recipe can be written, or where something is that would be lost."""
    if not place.parent.is_dir():
        raise UsageError(f"--write {place}: there is no folder {place.parent}")
    if not os.access(place.parent, os.W_OK | os.X_OK):
        raise UsageError(f"--write {place}: the folder {place.parent} can't be written to")
    if place.exists() or place.is_symlink():
        raise UsageError(f"--write {place}: is there already; name another file")


def _guessed(given: Mapping[str, Any], set_: Sequence[str]) -> dict[str, Any]:
    """Flags with what they don't say: the task by the data's columns, the name by the data's own, any domain."""
    from lorary.training.advisor.guess import guess_task

    flags = {"domain": "general", "name": _name_of(str(given["data.train"])), **given}
    if "task" in flags or any(text.partition("=")[0].strip() == "task" for text in set_):
        return flags
    if unread := [key for key in _MANNER if any(text.partition("=")[0].strip() == key for text in set_)]:
        raise UsageError(f"the task is told by the columns of files that say them, and {unread[0]} is set; pass --task")
    task, columns = guess_task(str(given["data.train"]))
    return {**flags, "task": task, **{f"data.columns.{role}": column for role, column in columns.items()}}


def _name_of(data: str) -> str:
    """A name for what is trained on these data: the file's, or its folder's where that says nothing."""
    path = Path(data)
    stem = path.name.partition(".")[0] or path.name
    try:
        return normalise_domain(path.absolute().parent.name if stem.lower() in _GENERAL else stem)
    except InvalidReferenceError:
        return "adapter"


def _write(place: Path, text: str) -> None:
    made = False
    try:
        with place.open("x", encoding="utf-8") as file:
            made = True
            file.write(text)
    except OSError as error:
        if made:  # half a recipe is none
            place.unlink(missing_ok=True)
        raise OutputError(f"--write {place}: can't be written ({error.strerror})") from error


def _next(
    found: Advice, recipe: Path | None, written: Path | None, given: Mapping[str, Any], set_: Sequence[str]
) -> list[str]:
    """Commands that go on from here."""
    if written is not None:
        return [f"lorary train {shlex.quote(str(written))}"]
    if recipe is None:
        return []
    from lorary.training.recipe import FLAG_OF
    from lorary.training.recipe.raw import read_recipe, section

    words = ["lorary", "train", str(recipe)]
    for key, value in given.items():
        words += [FLAG_OF[key], str(value)]
    for text in set_:
        words += ["--set", text]
    raw = read_recipe(recipe).with_overrides(set_)
    folds = any(setting.key == "training.folds" for setting in found.settings)
    if folds and section(raw.values, "data").get("test_size") is not None:
        words += ["--set", "data.test_size=null"]
    for setting in found.settings:
        flag = None if raw.origins.get(setting.key) == "--set" else FLAG_OF.get(setting.key)  # --set wins over flags
        words += [flag, str(setting.value)] if flag else ["--set", f"{setting.key}={setting.value}"]
    return [shlex.join(words)]
