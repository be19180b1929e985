"""``lorary verify``: are the files what the catalogue says, and do they answer as they did?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, no_registry, open_registry
from lorary.hub.cli.output import print_json, print_line
from lorary.hub.errors import RegistryError, UsageError
from lorary.hub.finding.search import Filter
from lorary.hub.values import Version

if TYPE_CHECKING:
    from lorary.hub.registry import Registry
    from lorary.hub.values import Finding

EXAMPLES = ("lorary verify", "lorary verify finance-tone@prod", "lorary verify finance-tone@prod --load")


def command(
    reference: Annotated[
        str | None, typer.Argument(metavar="REF", help="Only this version.", show_default=False)
    ] = None,
    load: Annotated[
        bool, typer.Option("--load", help="Also load each version onto its base and recompute its golden logits.")
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(metavar="ID", help="With --load: this base instead of those named.", show_default=False),
    ] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Check the catalogue's files, checkpoints and rows.

    Every file is hashed again. Exit code 1 where something is wrong. With --load, versions whose base isn't to be
    had, or is computed with otherwise than in training, are noted.
    """
    from dataclasses import asdict

    if base is not None and not load:
        raise UsageError("--base goes with --load")
    catalogue = open_registry(registry)
    findings = catalogue.verify(reference)
    checked = 1 if reference else catalogue.search(Filter(), limit=1).total
    if load:
        findings += _load(catalogue, reference, findings, base)
    errors = [finding for finding in findings if finding.level == "error"]
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        for finding in findings:
            where = f"{finding.reference}: " if finding.reference else ""
            print_line(f"{finding.level}: {where}{finding.message}")
        if catalogue.path.exists():
            print_line(f"{checked} version(s) verified, {len(errors)} error(s)")
        else:
            print_line(no_registry(catalogue.path))
    if errors:
        raise typer.Exit(1)


def _load(catalogue: Registry, reference: str | None, findings: list[Finding], base: str | None) -> list[Finding]:
    from lorary.adapters.proving.verification import verify_by_loading

    try:
        found = [catalogue.resolve(reference)] if reference else catalogue.each()
    except RegistryError:  # a row that is among the findings
        found = []
    wrong = {finding.reference for finding in findings if finding.level == "error"}
    # What is damaged is among the findings, and hides none of the others.
    whole = [one for one in found if isinstance(one, Version) and one.reference not in wrong]
    return list(verify_by_loading(catalogue, whole, base))
