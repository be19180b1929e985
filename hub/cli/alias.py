"""``lorary alias``: movable names for versions."""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.options import RegistryOption, open_registry
from lorary.hub.cli.output import print_line
from lorary.hub.errors import UsageError

EXAMPLES = (
    "lorary alias finance-tone prod 3",
    "lorary alias finance-tone@candidate prod",
    "lorary alias finance-tone prod --delete",
)


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The adapter, or one version of it: name@3.")],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, such as prod; ALIAS=VERSION works too.")],
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="A number, or another alias.", show_default=False)
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the alias away; the version stays.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Let NAME@ALIAS mean a version, whatever it meant before."""
    alias, equals, after_equals = alias.partition("=")
    body, _, pinned = name.partition("@")
    given = [text for text in (version, after_equals if equals else None, pinned or None) if text is not None]
    catalogue = open_registry(registry)
    if delete:
        if given:
            raise UsageError("--delete takes a name and an alias, no version")
        catalogue.unalias(body, alias)
        print_line(f"{body}@{alias} is no more")
        return
    if len(given) != 1:
        raise UsageError(f"expected one version, found {len(given)}; for example: lorary alias {body} {alias} 3")
    chosen = catalogue.resolve(f"{body}@{given[0]}")
    catalogue.alias(body, alias, chosen.number)
    print_line(f"{body}@{alias} is version {chosen.number}")
