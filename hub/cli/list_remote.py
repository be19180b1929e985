"""``lorary list --remote``: the adapters on the Hub or in a shared folder as a table."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorary.hub.cli.output import print_json, print_line, print_table
from lorary.hub.errors import UsageError

RemoteOption = Annotated[
    str | None,
    typer.Option("--remote", metavar="USER", help="What a user or an organization has on the Hub, or file:///folder."),
]
EverybodyOption = Annotated[bool, typer.Option("--all", help="What lorary's users have on the Hub.")]

_FILTERS = ("domain", "task", "base")
_OWN = ("remote", "everybody", "limit", "as_json", "registry")
# What a narrow terminal does without, in this order.
_EXPENDABLE = ("updated", "access", "base")


def print_remote(context: typer.Context) -> None:
    """Print what an owner has, or everybody, as the command's options say.

    Raises:
        UsageError: both were asked for, or something that tags can't answer.
    """
    options, owner = context.params, context.params["remote"]
    if owner == "--all":  # `list --remote --all`, whose second word the parser takes for a user's name
        owner = None
    elif owner is not None and options["everybody"]:
        raise UsageError("--remote USER and --all exclude each other; expected one of them")
    given = [
        option
        for option in context.command.params
        if option.name and getattr(context.get_parameter_source(option.name), "name", "") == "COMMANDLINE"
    ]
    if other := [option for option in given if option.name not in (*_FILTERS, *_OWN)]:
        raise UsageError(
            f"{other[0].opts[0]} isn't known of adapters elsewhere; "
            f"expected {', '.join(f'--{name}' for name in _FILTERS)}, or pull them first"
        )
    from lorary.hub.remote import list_remote

    limit = options["limit"] or None
    found, more = list_remote(owner, **{name: options[name] for name in _FILTERS}, limit=limit)
    if options["as_json"]:
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
        print_line(f"There are more than {limit}; narrow it down, or --limit 0 shows all.")
