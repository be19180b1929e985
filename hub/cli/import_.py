"""``lorary import``: a checkpoint that lies in a folder becomes a version in the catalogue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, version_json

EXAMPLES = (
    "lorary import out/finance-tone --domain finance",
    "lorary import ./checkpoint --name legal-ner --domain legal --task token-classification --alias prod",
)


def command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder written by PEFT's save_pretrained.")],
    name: Annotated[str | None, typer.Option(help="The adapter's name; default the folder's.")] = None,
    domain: Annotated[str | None, typer.Option(help="Its subject matter; default what lorary.json says.")] = None,
    task: Annotated[str | None, typer.Option(help="A pipeline tag; default what the checkpoint says.")] = None,
    alias: Annotated[str | None, typer.Option(help="Also let this alias mean the version.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; may be repeated.")] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Copy a PEFT checkpoint into the catalogue.

    The same checkpoint twice under one name is one version.
    """
    from lorary.hub.reference import check_name

    catalogue = open_registry(registry)
    if alias is not None:
        check_name(alias, "alias")  # before anything is written
    name = name if name is not None else folder.expanduser().resolve().name
    before = {version.number for version in catalogue.versions(name)}
    version = catalogue.add(folder, name=name, domain=domain, task=task, tags=tag or ())
    if alias is not None:
        catalogue.alias(version.name, alias, version.number)
        version = catalogue.resolve(version.reference)
    if as_json:
        print_json(version_json(version))
        return
    verb = "was there already" if version.number in before else "is in the catalogue"
    print_line(f"{version.reference} {verb} ({version.domain}, {version.task}, {version.method})")
