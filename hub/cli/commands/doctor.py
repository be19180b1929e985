"""``lorary doctor``: what is installed here, and whether it works."""

from __future__ import annotations

from dataclasses import asdict

import typer

from lorary.hub.cli.health import look
from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, print_table

EXAMPLES = (
    "lorary doctor",
    "lorary doctor --json > for-the-bug-report.json",
)


def command(as_json: JsonOption = False, registry: RegistryOption = None) -> None:
    """Check what is installed here, and whether it works.

    Packages, devices, quantization, the registry and more; the network is asked nothing. Exits with 1 where something
    is amiss.
    """
    findings = list(look(open_registry(registry)))
    amiss = [finding for finding in findings if finding.amiss]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table([{"what": one.subject, "found": one.found} for one in findings])
        for one in findings:
            if one.mend and not one.amiss:
                print_line(f"Hint: {one.subject}: {one.mend}")
        for one in amiss:
            print_line(f"Amiss: {one.subject}: {one.found}{one.mend and f'; {one.mend}'}")
    if amiss:
        raise typer.Exit(1)
