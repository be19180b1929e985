"""``lorary import``: adapters that lie in a folder, or in another registry, become versions in the catalogue."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, given_path, open_registry
from lorary.hub.cli.output import clean, print_json, print_line, print_table, version_json
from lorary.hub.errors import UsageError

if TYPE_CHECKING:
    from lorary.hub.importing import Outcome
    from lorary.hub.values import Version

EXAMPLES = (
    "lorary import out/finance-tone --domain finance",
    "lorary import ./checkpoint --name legal-ner --domain legal --task token-classification --alias prod",
    "lorary import ./saves --domain legal",
    "lorary import ../team/registry.db",
)


def command(
    source: Annotated[
        Path,
        typer.Argument(
            parser=given_path, metavar="SOURCE", help="An adapter's folder, a folder of such folders, or a registry.db."
        ),
    ],
    name: Annotated[str | None, typer.Option(help="The adapter's name; default the folder's.")] = None,
    domain: Annotated[str | None, typer.Option(help="Its subject matter; default what lorary.json says.")] = None,
    task: Annotated[str | None, typer.Option(help="A pipeline tag; default what the checkpoint says.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="The base of adapters made with PEFT alone; default what each says. Of a folder, its name is kept.",
        ),
    ] = None,
    alias: Annotated[str | None, typer.Option(help="Also let this alias mean the version.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Take all checkpoints of a run, not only the one that stands for it.")
    ] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Copy adapters in from folders, or from another registry.

    SOURCE is one adapter, a folder with adapters below it, or a registry.db. Takes what PEFT, TRL, unsloth, axolotl,
    LLaMA-Factory, sentence-transformers and mlx-lm leave behind. The same adapter twice under one name is one version.
    What can't be taken is listed with the reason, and the exit code is 1.
    """
    from lorary.hub.reference import check_name

    catalogue = open_registry(registry)
    if alias is not None:
        check_name(alias, "alias")  # before anything is written
    from lorary.hub.importing import import_folders, import_registry

    if source.expanduser().is_file():
        if name or domain or task or base or alias or tag or every:
            raise UsageError(f"{source}: a registry says all of its versions itself; leave the other options out")
        with _bar() as watch:
            taken = list(import_registry(catalogue, source.expanduser(), watch))
        _report(taken, as_json)
        return
    with _bar() as watch:
        found = list(
            import_folders(
                catalogue, source, every=every, name=name, domain=domain, task=task, tags=tag or (), alias=alias,
                base=base, watch=watch,
            )
        )  # fmt: skip
    if len(found) == 1 and found[0].reference is not None:
        _report_one(catalogue.resolve(found[0].reference), found[0], as_json)
        return
    _report(found, as_json)


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """In a terminal, a bar that names what is being taken and is gone afterwards; what moves it."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda what, done, total: progress.update(
            task, description=clean(what), completed=done, total=total, refresh=True
        )


def _report_one(version: Version, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print_json(version_json(version))
        return
    verb = "was there already" if outcome.state == "there already" else "is in the catalogue"
    print_line(f"{version.reference} {verb} ({version.domain}, {version.task}, {version.method})")
    if outcome.note:
        print_line(outcome.note)


def _report(outcomes: list[Outcome], as_json: bool) -> None:
    refused = [outcome for outcome in outcomes if outcome.state == "refused"]
    if as_json:
        print_json([asdict(outcome) for outcome in outcomes])
    elif outcomes:
        columns = {"source": "source", "state": "state", "version": "reference", "note": "note"}
        print_table([{title: getattr(one, field) or "" for title, field in columns.items()} for one in outcomes])
        counts = Counter(outcome.state for outcome in outcomes)
        print_line("")
        print_line(", ".join(f"{count} {state}" for state, count in counts.items()))
    else:
        print_line("nothing to import: the registry is empty")
    if refused:
        raise typer.Exit(1)
