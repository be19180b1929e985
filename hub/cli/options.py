"""Options that several subcommands share, and the registry that they open."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from lorary.hub.registry import Registry

RegistryOption = Annotated[
    Path | None,
    typer.Option("--registry", metavar="PATH", help="The catalogue; default $LORARY_REGISTRY, else ./registry.db."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
WhyOption = Annotated[
    str | None, typer.Option("--why", metavar="TEXT", help="The reason, for the alias's history.", show_default=False)
]
ReferenceArgument = Annotated[str, typer.Argument(metavar="REF", help="name, name@3 or name@alias.")]


def open_registry(path: Path | None) -> Registry:
    """The registry of ``--registry``, for a process in which start-up time counts."""
    _import_sqlite_utils()
    return Registry(path)


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
