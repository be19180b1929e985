"""``lorary best``: the one version to take."""

from __future__ import annotations

from typing import Annotated

import typer

from lorary.hub.cli.base_option import base_to_find
from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_fields, print_json, print_note, short_number, version_json
from lorary.hub.finding.search import Filter

EXAMPLES = (
    "lorary best --domain legal --task summarization --metric rougeL --base org/base",
    "lorary best --domain finance --task text-classification --json",
)


def command(
    metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The metric on held-out rows that decides; the task's usual one unless given."
        ),
    ] = None,
    domain: Annotated[str | None, typer.Option(help="Only this domain.")] = None,
    task: Annotated[str | None, typer.Option(help="Only this task, a pipeline tag.")] = None,
    base: Annotated[
        str | None, typer.Option(help="Only what is compatible with this base: an id, a fingerprint or a folder.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="Only this method: lora, qlora, dora, ...")] = None,
    tag: Annotated[str | None, typer.Option(help="Only versions with this tag.")] = None,
    alias: Annotated[str | None, typer.Option(help="Only versions with this alias.")] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="COMPARISON", help='Such as "accuracy>=0.9" or "rank<=8"; may be repeated.'),
    ] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Show the version with the best score, also for a given base.

    Compatible is what was trained on a base with the same fingerprint, under whatever id. An adapter without one is
    taken only where nothing else fits, and a note says so. Without --base, versions on all bases are compared.
    """
    catalogue = open_registry(registry)
    wanted = Filter(
        domain=domain, task=task, base=base_to_find(catalogue, base), method=method, tag=tag, alias=alias,
        where=tuple(where or ()),
    )  # fmt: skip
    choice = catalogue.choose(wanted, metric=metric)
    version = choice.version
    for note in choice.notes:
        print_note(note, aside=True)
    if as_json:
        told = {"metric": choice.metric, "value": choice.value, "among": choice.among, "compatible": choice.compatible}
        print_json({**told, "notes": list(choice.notes), "version": version_json(version)})
        return
    compatible = "yes, the fingerprint is the same" if choice.compatible else "unverified"
    among = f"{choice.among:,} version{'' if choice.among == 1 else 's'}"
    print_fields(
        {
            "best": version.reference,
            choice.metric: f"{short_number(choice.value)} (of {among})",
            "aliases": ", ".join(version.aliases),
            "domain": version.domain,
            "task": version.task,
            "base": version.base_id,
            "compatible": compatible if base is not None else None,
            "method": version.method,
            "created": version.created_at,
        }
    )
