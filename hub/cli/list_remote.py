"""``lorary list --remote``: the adapters on the Hub or in a shared folder as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer

from lorary.hub.cli.output import print_json, print_line, print_table
from lorary.hub.errors import UsageError

RemoteOption = Annotated[
    str | None,
    typer.Option("--remote", metavar="USER", help="What a user or an organization has on the Hub, or file:///folder."),
]
EverybodyOption = Annotated[bool, typer.Option("--all", help="What lorary's users have on the Hub.")]

_FILTERS = ("domain", "task", "base")
_NOT_FILTERS = ("remote", "everybody", "limit", "as_json", "registry")
_MOST = 100
# What a narrow terminal does without, in this order.
_EXPENDABLE = ("updated", "access", "base")


def print_remote(owner: str | None, everybody: bool, options: Mapping[str, Any], as_json: bool) -> None:
    """Print what an owner has, or everybody; ``options`` are all of the command's.

    Raises:
        UsageError: both were asked for, or a filter that tags can't answer.
    """
    if owner is not None and everybody:
        raise UsageError("--remote USER and --all exclude each other; expected one of them")
    other = [name for name, value in options.items() if value and name not in (*_FILTERS, *_NOT_FILTERS)]
    if other:
        raise UsageError(
            f"--{other[0].replace('_', '-')} isn't known of adapters elsewhere; "
            f"expected {', '.join(f'--{name}' for name in _FILTERS)}, or pull them first"
        )
    from lorary.hub.remote import list_remote

    limit = options.get("limit") or _MOST
    found, more = list_remote(owner, **{name: options[name] for name in _FILTERS}, limit=limit)
    if as_json:
        print_json([asdict(row) for row in found])
        return
    if not found:
        print_line(f"No adapter of {owner} fits." if owner else "No adapter on the Hub fits.")
        return
    rows = [
        {
            "adapter": row.address,
            "domain": row.domain or "",
            "task": row.task or "",
            "base": row.base or "",
            "access": {True: "private", False: "public", None: ""}[row.private],
            "updated": row.updated or "",
        }
        for row in found
    ]
    print_table(rows, expendable=_EXPENDABLE)
    if more:
        print_line(f"There are more than {limit}; narrow it down with --domain, --task or --base.")
