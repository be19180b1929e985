"""``lorary advise``: which strategy and settings fit some rows, by measurements that take no training."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lorary.hub.cli.next_commands import print_next
from lorary.hub.cli.options import (
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
from lorary.hub.cli.output import print_fields, print_json, print_line, print_note, print_table
from lorary.hub.errors import InvalidReferenceError, OutputError, UsageError
from lorary.hub.reference import normalise_domain
from lorary.hub.units import duration, size

if TYPE_CHECKING:
    from lorary.training.advisor.advise import Advice
    from lorary.training.advisor.bench import Start
    from lorary.training.estimate.plan import Estimate
    from lorary.training.experiments.bootstrap import Difference

EXAMPLES = (
    "lorary advise --base org/base --data train.jsonl",
    "lorary advise --base org/base --data train.jsonl --write tone.yaml",
    "lorary advise recipe.yaml --memory 24GB",
)

_SHOWN = 6  # labels
_READY = "as it is"
_BASELINES = {"majority": "the commonest label", "mean": "the mean number"}
_GENERAL = frozenset({"train", "data", "dataset", "rows", "training"})


def command(
    recipe: Annotated[
        Path | None,
        typer.Argument(parser=given_path, metavar="RECIPE.yaml", help="What is to be trained; or flags alone."),
    ] = None,
    set_: SetOption = None,
    base: Annotated[str | None, typer.Option(help="The base model: a folder or an id on the Hub.")] = None,
    data: Annotated[str | None, typer.Option(help="Training rows: JSONL, CSV, TSV, Parquet or a dataset id.")] = None,
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
        print_json({**_plain(found), "notices": reporter.notices})
    else:
        _show(found)
    if write is not None:
        _write(write, recipe_text(found))
        print_note(f"Recipe: {write}", aside=as_json)
    if not as_json:
        print_line("")
        print_next(_next(found, recipe, write, given, set_ or ()), catalogue.path)
        if recipe is None and write is None:
            print_line("With --write FILE.yaml the advised recipe is written for `lorary train`.")


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


def _show(found: Advice) -> None:
    facts, recipe = found.facts, found.asked
    lengths = facts.lengths
    total = sum(facts.labels.values())
    shares = [f"{label} {count / total:.0%}" for label, count in facts.labels.items()]
    print_fields({
        "task": f"{recipe.task} on {recipe.base}",
        "rows": f"{facts.train:,} to train on, {facts.validation:,} for validation, {facts.held_out:,} held out",
        "labels": ", ".join([*shares[:_SHOWN], f"{len(shares) - _SHOWN} more"] if len(shares) > _SHOWN else shares),
        "tokens of a row": f"{lengths.middle} in the middle, {lengths.nearly_all} at most in 99 of 100, "
        f"{lengths.longest} at most (max_length {lengths.most})" if lengths else None,
        "tokens to a word": f"{facts.tokens_per_word:.1f}" if facts.tokens_per_word else None,
    })  # fmt: skip
    if found.starts:
        print_line("")
        _show_starts(found)
    print_line("")
    if found.settings:
        print_line("Advised:")
        for setting in found.settings:
            print_line(f"  {setting.key}: {setting.value}")
            print_line(f"      {setting.why}")
    else:
        print_line("Nothing speaks for other settings than the recipe's.")
    for hint in found.hints:
        print_line(f"- {hint}")
    if found.estimate is not None:
        print_line(f"- {_run_line(found.estimate)}")


def _run_line(found: Estimate) -> str:
    cost = found.cost
    run = "the run takes" if found.runs == 1 else f"each of {found.runs} runs takes"
    memory = f"{size(cost.peak)} of {size(found.available)}, " if found.fits else ""  # else a hint has said it
    return f"{run} {memory}{cost.steps:,} steps, time {duration(cost.seconds)}"


def _show_starts(found: Advice) -> None:
    metric = str(found.metric)
    rows = [_start_row(metric, start) for start in found.starts]
    alone = {_BASELINES.get(name, name): value for name, value in found.baselines.items()}
    if found.beside.spelling is not None:
        alone["spelling alone"] = found.beside.spelling
    rows[1:1] = [{**dict.fromkeys(rows[0], ""), "start": name, metric: f"{value:.3f}"} for name, value in alone.items()]
    print_table([row if any(start.ready is not None for start in found.starts) else _without(row) for row in rows])
    print_line("")
    how = f"{metric} of a linear probe on frozen states, cross-validated" if found.probed else f"{metric} as it is"
    print_line(f"{how}, over {found.rows} training rows; differences with their interval. Nothing was trained.")


def _start_row(metric: str, start: Start) -> dict[str, object]:
    return {
        "start": start.reference or "the base",
        "domain": start.domain or "",
        "task": start.task or "",
        metric: f"{start.score:.3f}",
        "beside the base": _difference(start.against_base),
        _READY: "" if start.ready is None else f"{start.ready:.3f}",
    }


def _without(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name != _READY}


def _difference(found: Difference | None) -> str:
    return "" if found is None else f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f})"


def _plain(found: Advice) -> dict[str, Any]:
    cost = found.estimate.cost if found.estimate else None
    return {
        "recipe": found.recipe.settings("json"),
        "rows": asdict(found.facts),
        "measured_rows": found.rows,
        "metric": found.metric,
        "probed": found.probed,
        "starts": [asdict(start) for start in found.starts],
        "baselines": found.baselines,
        "beside": asdict(found.beside),
        "noise": found.noise,
        "settings": [asdict(setting) for setting in found.settings],
        "hints": found.hints,
        "estimate": None if cost is None or found.estimate is None else {
            "peak_bytes": cost.peak, "available_bytes": found.estimate.available, "fits": found.estimate.fits,
            "steps": cost.steps, "seconds": cost.seconds, "runs": found.estimate.runs,
        },
    }  # fmt: skip


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
