"""``lorary promote``: let an alias mean a version, if that meets what is required of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorary.hub.cli.options import JsonOption, ReferenceArgument, RegistryOption, WhyOption, open_registry
from lorary.hub.cli.output import print_json, print_line

EXAMPLES = (
    'lorary promote finance-tone@candidate --to prod --require "f1>=prod" --require "accuracy>=0.9" --require verify',
    'lorary promote finance-tone@7 --to prod --require "loss<=prod-0.01" --dry-run',
)


def command(
    reference: ReferenceArgument,
    to: Annotated[str, typer.Option("--to", metavar="ALIAS", help="The alias to move, such as prod.")],
    require: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CONDITION",
            help="A metric on held-out rows against a number or another version's, or `verify`; may be repeated.",
        ),
    ] = None,
    why: WhyOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say how it would go.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Move an alias to a version that meets every requirement.

    Else nothing moves, what isn't met is listed, and the exit code is 1. A requirement such as f1>=prod compares
    with the version that the alias means now; it holds where there is none. Metrics are compared as written: of a
    loss, less is better, so require loss<=prod.
    """
    promotion = open_registry(registry).promote(reference, to, require=require or (), why=why, dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(promotion)})
        return
    for check in promotion.checks:
        print_line(f"{check.requirement}: {check.found}")
    for note in promotion.notes:
        print_line(f"note: {note}")
    named = f"{promotion.name}@{promotion.alias}"
    if promotion.from_number == promotion.to_number:
        print_line(f"{named} is version {promotion.to_number} already")
        return
    was = "nothing" if promotion.from_number is None else f"version {promotion.from_number}"
    verb = "would become" if dry_run else "is now"
    print_line(f"{named} {verb} version {promotion.to_number}; it was {was}")
