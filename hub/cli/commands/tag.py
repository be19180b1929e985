"""``lorary tag``: words to find a version by."""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.options import ReferenceArgument, RegistryOption, open_registry
from lorary.hub.cli.output import print_line

EXAMPLES = ("lorary tag finance-tone@3 english news", "lorary tag finance-tone@3 news --delete")


def command(
    reference: ReferenceArgument,
    tags: Annotated[list[str], typer.Argument(metavar="TAG", help="One or more words.")],
    delete: Annotated[bool, typer.Option("--delete", help="Take the tags off instead.")] = False,
    registry: RegistryOption = None,
) -> None:
    """Tag a version; `lorary list --tag` finds it again."""
    catalogue = open_registry(registry)
    # Fixed before the change, so that the line below tells of the version that was changed.
    reference = catalogue.resolve(reference).reference
    change = catalogue.untag if delete else catalogue.tag
    change(reference, *tags)
    print_line(
        f"{reference} has {'the tags ' + ', '.join(now) if (now := catalogue.resolve(reference).tags) else 'no tags'}"
    )
