"""``lorary alias``: movable names for versions, and who moved them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from lorary.hub.cli.options import JsonOption, RegistryOption, WhyOption, open_registry
from lorary.hub.cli.output import print_json, print_line, print_table
from lorary.hub.errors import UsageError
from lorary.hub.registry_path import suggested

if TYPE_CHECKING:
    from lorary.hub.registry import Registry
    from lorary.hub.values import AliasMove

EXAMPLES = (
    "lorary alias finance-tone prod 3",
    'lorary alias finance-tone@candidate prod --why "best f1 so far"',
    "lorary alias finance-tone prod --delete",
    "lorary alias finance-tone",
    "lorary alias finance-tone prod --history",
)


def command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The adapter, or one version of it: name@3.")],
    alias: Annotated[
        str | None,
        typer.Argument(metavar="ALIAS", help="The alias, such as prod; ALIAS=VERSION works too.", show_default=False),
    ] = None,
    version: Annotated[
        str | None, typer.Argument(metavar="VERSION", help="A number, or another alias.", show_default=False)
    ] = None,
    delete: Annotated[bool, typer.Option("--delete", help="Take the alias away; the version stays.")] = False,
    history: Annotated[
        bool, typer.Option("--history", help="Show who moved the aliases, or this one, when, from what to what.")
    ] = False,
    why: WhyOption = None,
    as_json: JsonOption = False,
    registry: RegistryOption = None,
) -> None:
    """Let an alias mean a version, or show the aliases.

    With NAME, ALIAS and VERSION, NAME@ALIAS means that version from now on. Without VERSION the aliases are shown.
    """
    body, _, pinned = name.partition("@")
    alias, equals, after_equals = alias.partition("=") if alias is not None else (None, "", "")
    given = [text for text in (version, after_equals if equals else None, pinned or None) if text is not None]
    catalogue = open_registry(registry)
    if history or alias is None:
        if given or delete or why is not None:
            raise UsageError(f"expected an alias to change; for example: lorary alias {body} prod 3")
        _show(catalogue, body, alias, history, as_json)
        return
    if as_json:
        raise UsageError("--json goes with showing aliases: `lorary alias NAME [--history] --json`")
    if delete:
        if given:
            raise UsageError("--delete takes a name and an alias, no version")
        catalogue.unalias(body, alias, why=why)
        print_line(f"{body}@{alias} is no more")
        return
    if len(given) != 1:
        raise UsageError(f"expected one version, found {len(given)}; for example: lorary alias {body} {alias} 3")
    chosen = catalogue.resolve(f"{body}@{given[0]}")
    moved = catalogue.alias(body, alias, chosen.number, why=why)
    print_line(f"{body}@{alias} is version {chosen.number}{'' if moved else ' already'}")


def _show(catalogue: Registry, name: str, alias: str | None, history: bool, as_json: bool) -> None:
    moves = catalogue.alias_history(name, alias)
    if history:
        _show_history(name, moves, as_json)
        return
    last = {move.alias: move for move in moves}
    rows = [_told(held, number, last.get(held)) for held, number in catalogue.aliases(name).items()]
    if as_json:
        print_json(rows)
    elif rows:
        print_table([{**row, "why": row["why"] or ""} for row in rows], expendable=("who", "since"))
    else:
        example = suggested(f"lorary alias {name} prod 3", catalogue.path)
        print_line(f"{name} has no aliases; `{example}` makes one")


def _told(alias: str, number: int, move: AliasMove | None) -> dict[str, object]:
    """An alias as it is now; of one that was set before there was a history, only what it means is known."""
    known = move if move is not None and move.to_number == number else None
    return {
        "alias": alias,
        "version": number,
        "since": known.at if known else "",
        "who": known.who if known else "",
        "why": known.why if known else None,
    }


def _show_history(name: str, moves: Sequence[AliasMove], as_json: bool) -> None:
    if as_json:
        print_json([asdict(move) for move in moves])
    elif moves:
        print_table([_row(move) for move in moves], expendable=("who",))
    else:
        print_line(f"no alias of {name} has moved yet")


def _row(move: AliasMove) -> dict[str, object]:
    reason = [f"rollback of move {move.undoes}"] if move.undoes is not None else []
    origin = [f"from {move.origin}"] if move.origin is not None else []
    return {
        "move": move.id,
        "alias": move.alias,
        "from": "-" if move.from_number is None else move.from_number,
        "to": "-" if move.to_number is None else move.to_number,
        "when": move.at,
        "who": move.who,
        "why": "; ".join([*reason, *([move.why] if move.why else []), *origin]),
    }
