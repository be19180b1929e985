"""``lorary sync``: the catalogue and its remotes get the same versions."""

from __future__ import annotations

from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line
from lorary.hub.cli.transfers import tell, version_list
from lorary.hub.errors import RemoteError
from lorary.hub.registry_path import suggested

if TYPE_CHECKING:
    from pathlib import Path

    from lorary.hub.remote.sync import Synced

EXAMPLES = ("lorary sync", "lorary sync finance-tone")


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this adapter; default all.")] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Pull what is behind and push what is ahead.

    For every adapter that has a remote. Where both have versions that the other lacks, neither is changed. Aliases
    that are here stay as they are.
    """
    from lorary.hub.remote import sync

    catalogue = open_registry(registry)
    done = sync(catalogue, name, watch=tell)
    if as_json:
        print_json([_values(one) for one in done])
    elif not done:
        print_line("No adapter has a remote yet; `lorary push` or `lorary pull` makes one.")
    else:
        for one in done:
            print_line(_line(one, catalogue.path))
    left = [one.before.name for one in done if not one.settled]
    if left:
        raise RemoteError(f"{len(left)} of {len(done)} weren't brought to the same versions: {', '.join(left)}")


def _values(one: Synced) -> dict[str, object]:
    return {
        "name": one.before.name,
        "remote": one.before.remote,
        "before": one.before.relation,
        "pulled": [pulled.version.reference for pulled in one.pulled],
        "pushed": [pushed.version.reference for pushed in one.pushed],
        "settled": one.settled,
        "problem": one.problem,
    }


def _line(one: Synced, catalogue: Path) -> str:
    from lorary.hub.remote.address import FolderAddress, parse_address

    before = one.before
    where = f"{before.name} and {before.remote}"
    if one.problem is not None:
        return f"{where}: {one.problem}"
    if before.relation == "missing":
        again = f"`{suggested(f'lorary push {before.name} {quote(before.remote)}', catalogue)}` makes it anew"
        if isinstance(address := parse_address(before.remote), FolderAddress):
            return (
                f"{where}: it isn't there any more; is it mounted? If it was deleted on purpose, make the folder "
                f"{address.path}, then {again}"
            )
        return f"{where}: it isn't there any more; {again}"
    if before.relation == "diverged":
        here, there = version_list(before.ahead), version_list(before.behind, "v")
        pull = suggested(f"lorary pull {quote(before.remote)} --name {before.name}", catalogue)
        push = suggested(f"lorary push {before.name}@{before.ahead[-1]}", catalogue)
        return (
            f"{where}: diverged, nothing was changed; only here: {here}; only there: {there} (`{pull}`, then `{push}`)"
        )
    pulled = [pulled.version.reference for pulled in one.pulled]
    pushed = [pushed.version.reference for pushed in one.pushed]
    done = [f"{verb} {', '.join(which)}" for verb, which in (("pulled", pulled), ("pushed", pushed)) if which]
    return f"{where}: {'; '.join(done) or 'the same'}"
