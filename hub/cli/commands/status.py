"""``lorary status``: the catalogue against its remotes."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, open_registry
from lorary.hub.cli.output import print_json, print_line, print_table
from lorary.hub.cli.transfers import tell, version_list
from lorary.hub.errors import RemoteError

if TYPE_CHECKING:
    from lorary.hub.remote.compare import AliasDifference

EXAMPLES = ("lorary status", "lorary status finance-tone --json")


def command(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Only this adapter; default all.")] = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Say which adapters are ahead of their remotes, or behind.

    Diverged is what is both. An alias is shown where it means another version there than here.
    """
    from lorary.hub.remote import status

    found = status(open_registry(registry), name, watch=tell)
    if as_json:
        print_json([{**asdict(one), "state": one.relation} for one in found])
    elif found:
        rows = [
            {
                "name": one.name,
                "state": one.relation,
                "only here": version_list(one.ahead),
                "only there": version_list(one.behind, "v"),
                "aliases": ", ".join(_alias(difference) for difference in one.aliases),
                "remote": one.remote,
            }
            for one in found
        ]
        print_table(rows)
    else:
        print_line("No adapter has a remote yet; `lorary push` or `lorary pull` makes one.")
    problems = [one.problem for one in found if one.problem]
    if problems:
        more = " (--json tells each reason)" if len(problems) > 1 and not as_json else ""
        raise RemoteError(f"{len(problems)} of {len(found)} remotes couldn't be asked: {problems[0]}{more}")


def _alias(difference: AliasDifference) -> str:
    here = f"{difference.here} here" if difference.here else "not here"
    there = f"v{difference.there} there" if difference.there else "not there"
    return f"{difference.alias}: {here}, {there}"
