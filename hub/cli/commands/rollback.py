"""``lorary rollback``: let an alias mean what it meant before."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, WhyOption, open_registry
from lorary.hub.cli.output import print_json, print_line

EXAMPLES = ("lorary rollback finance-tone prod", 'lorary rollback finance-tone prod --why "answers got slower"')


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The adapter.")],
    alias: Annotated[str, typer.Argument(metavar="ALIAS", help="The alias, such as prod.")],
    why: WhyOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Let an alias mean again what it meant before.

    A second time it goes further back. Versions that were removed since are passed over. `lorary alias NAME
    --history` shows all moves.
    """
    move = open_registry(registry).rollback(name, alias, why=why)
    if as_json:
        print_json(asdict(move))
        return
    was = "nothing" if move.from_number is None else f"version {move.from_number}"
    print_line(f"{name}@{alias} is version {move.to_number} again; it was {was}")
