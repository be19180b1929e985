"""``lorary pull``: a version comes from the Hub or from a shared folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, version_json
from lorary.hub.registry_path import suggested

if TYPE_CHECKING:
    from pathlib import Path

    from lorary.hub.remote.pull import Pulled

EXAMPLES = (
    "lorary pull org/finance-tone",
    "lorary pull org/finance-tone@prod",
    "lorary pull someone/their-lora --domain legal --task summarization",
    "lorary pull someone/their-lora --domain legal --base meta-llama/Llama-3.2-1B",
    "lorary pull file:///mnt/team/adapters/finance-tone@v3",
)


def command(
    source: Annotated[str, typer.Argument(metavar="REMOTE", help="user/repo[@revision] or file:///folder/name[@v3].")],
    name: Annotated[str | None, typer.Option(help="What to call it here; default what it is called there.")] = None,
    domain: Annotated[str | None, typer.Option(help="Its subject matter; default what it says.")] = None,
    task: Annotated[str | None, typer.Option(help="A pipeline tag; default what it says.")] = None,
    base: Annotated[
        str | None,
        typer.Option(
            metavar="ORG/NAME",
            help="The base of an adapter made with PEFT alone; default what it says. Of a folder, its name is kept.",
        ),
    ] = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Take files that were changed since they were pushed.")
    ] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Fetch a version from the Hub or from a shared folder.

    It becomes the next version of its name, unless the same one (by digest) is there. Adapters that were made with
    PEFT alone come too; they need --domain, --task where PEFT's own type leaves it open, and --base where their config
    names a folder of whoever made them.
    """
    from lorary.hub.remote import pull

    catalogue = open_registry(registry)
    pulled = pull(catalogue, source, name=name, domain=domain, task=task, base=base, changed=changed)
    if as_json:
        print_json(as_values(pulled))
        return
    for line in _report(pulled, catalogue.path):
        print_line(line)


def as_values(pulled: Pulled) -> dict[str, object]:
    """What a pull did, as JSON values."""
    return {
        **version_json(pulled.version),
        "remote": pulled.remote,
        "remote_number": pulled.number,
        "commit": pulled.commit,
        "new": pulled.new,
        "aliases_kept": list(pulled.kept),
        "note": pulled.note,
    }


def _report(pulled: Pulled, catalogue: Path) -> list[str]:
    version = pulled.version
    place = f"{pulled.remote}@v{pulled.number}" if pulled.number else f"{pulled.remote}@{pulled.commit[:12]}"
    verb = "is now in the catalogue as" if pulled.new else "was in the catalogue already, as"
    lines = [f"{place} {verb} {version.reference} ({version.domain}, {version.task}, {version.method})"]
    if pulled.aliases:
        lines.append(f"aliases set: {', '.join(f'{version.name}@{alias}' for alias in pulled.aliases)}")
    for alias in pulled.kept:
        setting = suggested(f"lorary alias {version.name} {alias} {version.number}", catalogue)
        lines.append(f"there it is {alias} too; {version.name}@{alias} stays as it is here (`{setting}` sets it)")
    if pulled.note:
        lines.append(pulled.note)
    return lines
