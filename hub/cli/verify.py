"""``lorary verify``: are the files what the catalogue says?"""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line

EXAMPLES = ("lorary verify", "lorary verify finance-tone@prod")


def command(
    reference: Annotated[
        str | None, typer.Argument(metavar="REF", help="Only this version.", show_default=False)
    ] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Hash every file again and compare files, checkpoints and rows; exit with 1 if something is wrong."""
    from dataclasses import asdict

    catalogue = open_registry(registry)
    findings = catalogue.verify(reference)
    errors = [finding for finding in findings if finding.level == "error"]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            where = f"{finding.reference}: " if finding.reference else ""
            print_line(f"{finding.level}: {where}{finding.message}")
        checked = [catalogue.resolve(reference)] if reference else catalogue.versions()
        print_line(f"{len(checked)} version(s) verified, {len(errors)} error(s)")
    if errors:
        raise typer.Exit(1)
