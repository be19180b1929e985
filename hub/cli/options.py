"""Options that several subcommands share, and the registry that they open."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lorary.hub.errors import UsageError
from lorary.hub.registry import Registry
from lorary.hub.units import parse_size


def given_path(text: str) -> Path:
    """A path of the command line: what options and arguments of type ``Path`` have for their ``parser``.

    Raises:
        BadParameter: it is empty, as an unset variable of a shell script is; Python takes that for the current folder.
            Or it begins with the home folder of a user that there isn't, or is longer than paths can be.
    """
    if not text:
        raise typer.BadParameter("expected a path, found an empty text (the current folder is .)")
    try:
        Path(text).expanduser().lstat()
    except RuntimeError as error:
        raise typer.BadParameter(f"{text}: no such user's home folder is known") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise typer.BadParameter(f"{text[:100]}...: {error.strerror}") from error
    return Path(text)


RegistryOption = Annotated[
    Path | None,
    typer.Option(
        "--registry",
        parser=given_path,
        metavar="PATH",
        help="The catalogue; default $LORARY_REGISTRY, else ./registry.db.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
WhyOption = Annotated[
    str | None, typer.Option("--why", metavar="TEXT", help="The reason, for the alias's history.", show_default=False)
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Any setting of the recipe; repeatable.")
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on with a run that was stopped: RUN, or the newest of RECIPE.yaml.")
]
BaseOption = Annotated[str | None, typer.Option("--base", help="The base model: a folder or an id on the Hub.")]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Training rows: JSONL, CSV, TSV, Parquet or a dataset id.")
]
SeedOption = Annotated[int | None, typer.Option(help="The seed of everything random; default 42.")]
DeviceOption = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:0; default CUDA where there is one.")]
MemoryOption = Annotated[
    str | None,
    typer.Option("--memory", metavar="SIZE", help="Fit into this, such as 24GB; default: what the device has."),
]
DeviceMapOption = Annotated[str | None, typer.Option(help="auto: spread the base over all GPUs.")]
ReferenceArgument = Annotated[str, typer.Argument(metavar="REF", help="name, name@3 or name@alias.")]


def open_registry(path: Path | None) -> Registry:
    """The registry of ``--registry``, for a process in which start-up time counts."""
    _import_sqlite_utils()
    return Registry(path)


def no_registry(path: Path) -> str:
    """What a command says in place of an answer from a registry that isn't there."""
    return f"There is no registry at {path} yet; `lorary train`, `import` or `pull` makes it."


def one_form(as_json: bool, as_csv: bool) -> None:
    """Nothing, where at most one of the two was asked for. Raises UsageError where both were."""
    if as_json and as_csv:
        raise UsageError("--json and --csv exclude each other; expected one of them")


def given_memory(text: str | None) -> int | None:
    """The bytes of ``--memory``; None where it isn't given. Raises UsageError where it is no size."""
    if text is None:
        return None
    count = parse_size(text)
    if not count:
        raise UsageError(f"--memory {text!r}: expected a size such as 24GB or 80GiB")
    return count


def demand_distinct(references: Sequence[str]) -> None:
    """Raise UsageError where one of several adapters is named twice."""
    for reference in references:
        if references.count(reference) > 1:
            raise UsageError(f"{reference} is named twice")


def run_folder(argument: Path | None, resume: bool, settings: bool) -> Path | None:
    """The folder of the run to go on with, where the argument of a training command names one in a recipe's place.

    Args:
        settings: were flags or ``--set`` given too?

    Raises:
        UsageError: a folder without ``--resume``, or settings for a run that has its own.
    """
    run = argument if argument and not argument.is_file() and (resume or argument.is_dir()) else None
    if run and not resume:
        raise UsageError(f"{run} is a folder; expected a recipe, or --resume to go on with the run in it")
    if run and settings:
        raise UsageError(f"{run}: a run goes on with the settings that it has; leave the flags and --set out")
    return run


def _import_sqlite_utils() -> None:
    # sqlite_utils imports pandas and numpy when they are installed, which takes three times as long as all the rest and
    # is of no use here: for this one import they aren't there. Afterwards they import as ever.
    hidden = [name for name in ("numpy", "pandas") if name not in sys.modules]
    for name in hidden:
        sys.modules[name] = None  # type: ignore[assignment]
    try:
        import sqlite_utils  # noqa: F401
    finally:
        for name in hidden:
            del sys.modules[name]
