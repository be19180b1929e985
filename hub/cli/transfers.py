"""What the commands that talk to remotes have in common."""

from __future__ import annotations

import sys

from lorary.hub.cli.output import print_note


def tell(line: str) -> None:
    """Say in a terminal what is under way."""
    if sys.stderr.isatty():
        print_note(line, aside=True)


def version_list(numbers: tuple[int, ...], prefix: str = "") -> str:
    """Numbers in few words: ``3``, ``3, 5``, ``3 to 9 (7)``; 0 is an adapter without a number."""
    named = [f"{prefix}{number}" if number else "unnumbered" for number in numbers]
    if len(named) <= 4:
        return ", ".join(named)
    return f"{named[0]} to {named[-1]} ({len(named)})"
