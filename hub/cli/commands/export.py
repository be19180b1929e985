"""``lorary export``: a version as a plain PEFT folder, as an archive, or behind vLLM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorary.hub.cli.options import JsonOption, ReferenceArgument, RegistryOption, given_path, open_registry
from lorary.hub.cli.output import print_json, print_line, print_note
from lorary.hub.errors import UsageError
from lorary.hub.registry import Registry
from lorary.hub.values import Version

EXAMPLES = (
    "lorary export finance-tone@prod ./finance-tone",
    "lorary export finance-tone --tar finance-tone.tar.gz",
    "lorary export story-teller@3 ./story-teller --vllm",
)


def command(
    reference: ReferenceArgument,
    folder: Annotated[
        Path | None, typer.Argument(parser=given_path, metavar="DIR", help="A folder that isn't there yet.")
    ] = None,
    tar: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="FILE", help="Write an archive; .tar, or .tar.gz for a compressed one."
        ),
    ] = None,
    vllm: Annotated[bool, typer.Option("--vllm", help="Print the command that serves DIR with vLLM.")] = False,
    base: Annotated[
        str | None, typer.Option(help="The base for --vllm; default the one that the adapter names.")
    ] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Write a version as a folder that PEFT loads, with its card.

    vLLM serves plain LoRA of a generating base; what its loader refuses is refused here, before anything is written.
    """
    if folder is None and tar is None:
        raise UsageError("nothing to write: name a folder, or a file with --tar")
    if base is not None and not vllm:
        raise UsageError("--base is for --vllm; an exported adapter names its base itself")
    if vllm and folder is None:
        raise UsageError("--vllm is for a folder: name one for vLLM to read")
    if tar is not None and not tar.name.endswith((".tar", ".tar.gz", ".tgz")):
        raise UsageError(f"--tar {tar}: expected a name that ends with .tar, .tar.gz or .tgz")
    catalogue = open_registry(registry)
    version = catalogue.resolve(reference)
    checkpoint = catalogue.checkpoint(version)
    from lorary.hub.export import export_folder, export_tar, vllm_command

    served = None
    if vllm and folder is not None:
        base = base or _known_folder(catalogue, version)
        served = vllm_command(version, checkpoint, folder.expanduser().absolute(), base)
    written: dict[str, str] = {}
    if folder is not None:
        written["folder"] = str(export_folder(version, checkpoint, folder))
    if tar is not None:
        written["tar"] = str(export_tar(version, checkpoint, tar))
    if as_json:
        print_json({"reference": version.reference, "digest": version.digest, **written, "vllm": served})
        return
    for path in written.values():
        print_line(f"{version.reference}: {path}")
    if served is not None:
        print_line(served)


def _known_folder(catalogue: Registry, version: Version) -> str | None:
    """Where the base is on this machine, when it is a folder: the adapter's files have its name alone."""
    named = version.base_id
    if named is None or "/" in named:
        return None
    if pretrained := catalogue.bases.find(named):
        return str(pretrained.folder)
    known = catalogue.bases.folders_of(named)
    if not known and not (version.manifest and version.manifest.base.commit):
        print_note(f"note: {named} may be a folder's name; --base says where it is", aside=True)
    return str(known[0]) if len(known) == 1 else None
