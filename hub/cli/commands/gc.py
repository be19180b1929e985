"""``lorary gc``: delete what nothing in the catalogue needs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, size

EXAMPLES = ("lorary gc --dry-run", "lorary gc")


def command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Delete what broken-off commands have left beside the registry.

    Files of versions and bases stay, and so do those of commands that are at work.
    """
    collected = open_registry(registry).collect(dry_run=dry_run)
    if as_json:
        print_json({"dry_run": dry_run, **asdict(collected)})
    else:
        counts = {
            "object": collected.objects,
            "unfinished copy": collected.copies,
            "folder of a base": collected.bases,
        }
        plurals = {"object": "objects", "unfinished copy": "unfinished copies", "folder of a base": "folders of bases"}
        told = [f"{n} {what if n == 1 else plurals[what]}" for what, n in counts.items() if n]
        verb = "would be deleted" if dry_run else "deleted"
        print_line(f"{', '.join(told)} {verb}, {size(collected.bytes)}" if told else "nothing to delete")
        if collected.busy:
            print_line(f"left alone: {collected.busy} of commands at work")
        for problem in collected.problems:
            print_line(f"not deleted: {problem}")
    if collected.problems:
        raise typer.Exit(1)
