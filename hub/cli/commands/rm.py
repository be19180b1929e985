"""``lorary rm``: take a version out of the catalogue."""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.options import ReferenceArgument, RegistryOption, WhyOption, open_registry
from lorary.hub.cli.output import print_line

EXAMPLES = ("lorary rm finance-tone@2", "lorary rm finance-tone@prod --force")


def command(
    reference: ReferenceArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Even if an alias or a version trained from it needs it.")
    ] = False,
    why: WhyOption = None,
    registry: RegistryOption = None,
) -> None:
    """Remove a version and its files for good.

    Its number isn't given out again.
    """
    removed = open_registry(registry).remove(reference, force=force, why=why)
    print_line(f"{removed.reference} is removed")
