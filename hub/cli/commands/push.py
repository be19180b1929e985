"""``lorary push``: a version goes to the Hub or to a shared folder."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, ReferenceArgument, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, size
from lorary.hub.cli.transfers import tell

if TYPE_CHECKING:
    from lorary.hub.remote.push import Pushed

EXAMPLES = (
    "lorary push finance-tone",
    "lorary push finance-tone@prod org/finance-tone --public",
    "lorary push finance-tone file:///mnt/team/adapters",
    "lorary push finance-tone@3 org/finance-tone --dry-run",
)


def command(
    reference: ReferenceArgument,
    target: Annotated[
        str | None,
        typer.Argument(metavar="REMOTE", help="user/repo or file:///folder; default its remote, else YOU/NAME."),
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public; default private.")] = False,
    message: Annotated[str | None, typer.Option(help="The commit's message; its first line is the title.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Send a version to the Hub or to a shared folder.

    Weights, card, report, golden logits and lorary-version.json go in one commit; tags (v3, and the version's aliases)
    follow. What is there already is not sent again, but its tags are set right. Nothing is overwritten that this
    registry doesn't know.
    """
    from lorary.hub.remote import push

    catalogue = open_registry(registry)
    pushed = push(catalogue, reference, target, public=public, message=message, dry_run=dry_run, watch=tell)
    if as_json:
        print_json(as_values(pushed))
        return
    for line in _report(pushed, public, dry_run):
        print_line(line)
    if pushed.withheld:
        print_line(f"not sent, since a tag can't be called so: {', '.join(pushed.withheld)}")
    if public and not pushed.created and "://" not in pushed.remote:
        print_line(f"{pushed.remote} was there already: --public changes nothing about who may see it")


def as_values(pushed: Pushed) -> dict[str, object]:
    """What a push did, as JSON values."""
    parcel = pushed.parcel
    return {
        "reference": pushed.version.reference,
        "remote": pushed.remote,
        "number": pushed.number,
        "digest": pushed.version.digest,
        "commit": pushed.commit,
        "created": pushed.created,
        "sent": sorted(parcel.contents) if parcel else [],
        "size_bytes": parcel.size_bytes if parcel else 0,
        "tags": list(pushed.moved),
        "aliases_withheld": list(pushed.withheld),
    }


def _report(pushed: Pushed, public: bool, dry_run: bool) -> list[str]:
    place = f"{pushed.remote}@v{pushed.number}"
    if pushed.parcel is None:
        if not pushed.moved:
            return [f"{pushed.version.reference} is {place} already; nothing to do"]
        verb = "would be set to it" if dry_run else "set to it"
        return [f"{pushed.version.reference} is {place} already; {verb}: {', '.join(pushed.moved)}"]
    parcel = pushed.parcel
    sent = f"{len(parcel.contents)} files, {size(parcel.size_bytes)}"
    new = f" (new, {'public' if public else 'private'})" if pushed.created and "://" not in pushed.remote else ""
    if dry_run:
        names = ", ".join(sorted(parcel.contents))
        return [
            f"{pushed.version.reference} would become {place}{new}: {sent}",
            f"files: {names}",
            f"tags: {', '.join(pushed.moved)}",
        ]
    commit = f" at commit {pushed.commit[:12]}" if pushed.commit and "://" not in pushed.remote else ""
    return [f"{pushed.version.reference} is now {place}{new}{commit}: {sent}; tags {', '.join(pushed.moved)}"]
