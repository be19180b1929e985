"""``lorary list``: the catalogue as a table."""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.list_remote import EverybodyOption, RemoteOption, print_remote
from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, print_table, short_number, version_json
from lorary.hub.metrics import headline
from lorary.hub.values import Version

EXAMPLES = (
    "lorary list --domain finance --task text-classification",
    "lorary list --search headline --json",
    "lorary list --remote org --domain finance",
)

# What a narrow terminal does without, in this order.
_EXPENDABLE = ("created", "method", "base", "aliases")


def command(
    domain: Annotated[str | None, typer.Option(help="Only this domain.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, a pipeline tag.")] = None,
    base: Annotated[str | None, typer.Option(help="Only adapters of this base: an id or a fingerprint.")] = None,
    method: Annotated[str | None, typer.Option(help="Only this method: lora, qlora, dora, ...")] = None,
    tag: Annotated[str | None, typer.Option(help="Only versions with this tag.")] = None,
    search: Annotated[str | None, typer.Option(metavar="TEXT", help="Only versions that mention these words.")] = None,
    remote: RemoteOption = None,
    everybody: EverybodyOption = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """List the adapters in the catalogue, or on the Hub, or in a shared folder.

    A narrow terminal leaves out columns; a pipe and --json have all of them.
    """
    if remote is not None or everybody:
        print_remote(remote, everybody, locals(), as_json)
        return
    catalogue = open_registry(registry)
    versions = catalogue.find(domain=domain, task=task, base=base, method=method, tag=tag, text=search)
    if as_json:
        print_json([version_json(version) for version in versions])
    elif versions:
        print_table([_row(version) for version in versions], expendable=_EXPENDABLE)
    elif not catalogue.path.exists():
        print_line(f"There is no registry at {catalogue.path} yet; `lorary import` makes it.")
    else:
        print_line(f"Nothing in {catalogue.path} fits." if catalogue.versions() else f"{catalogue.path} is empty.")


def _row(version: Version) -> dict[str, object]:
    best = headline(version.metrics.get("test", {}))
    return {
        "name": version.name,
        "version": version.number,
        "domain": version.domain,
        "task": version.task,
        "method": version.method,
        "base": (version.base_id or "").rstrip("/").rpartition("/")[2],
        "metric": f"{best[0]} {short_number(best[1])}" if best else "",
        "aliases": ", ".join(version.aliases),
        "created": version.created_at[:10],
    }
