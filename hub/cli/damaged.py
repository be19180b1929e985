"""What of the catalogue can't be read, told beside the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

import typer

from lorary.hub.cli.output import print_error
from lorary.hub.values import Unreadable

_Value = TypeVar("_Value")


def readable(found: Iterable[_Value | Unreadable], damaged: list[Unreadable]) -> Iterator[_Value]:
    """What can be read, as it comes; the rest is added to ``damaged``."""
    for one in found:
        if isinstance(one, Unreadable):
            damaged.append(one)
        else:
            yield one


def tell_damaged(damaged: Iterable[object]) -> None:
    """Print an error for each on stderr; the command ends with exit code 1 where there are any."""
    told = list(map(str, damaged))
    for line in told:
        print_error(line)
    if told:
        raise typer.Exit(1)
