"""What a name's aliases mean in another registry, and all that they meant there, carried over."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.keeping.aliases import (
    adapter_of,
    check_line,
    history,
    insert_move,
    meaning,
    point_alias,
    set_alias,
    signature,
)
from lorary.hub.markup import clean
from lorary.hub.provenance.private import own_folder
from lorary.hub.reference import check_name
from lorary.hub.registry import Registry
from lorary.hub.tables.database import writing
from lorary.hub.tables.insertion import check_time
from lorary.hub.tables.lookup import locate_id
from lorary.hub.values import AliasMove

if TYPE_CHECKING:
    from sqlite_utils import Database

_WHY = "imported with the version"


def carry_aliases(
    registry: Registry, other: Registry, name: str, numbers: Mapping[int, int], means: Mapping[str, int]
) -> Iterator[tuple[str, str]]:
    """Give a name here the aliases that it has in another registry, with their history, in one transaction.

    An alias that means something here, or did, keeps its own history: one without a meaning gets that of the other
    registry, one with another meaning stays. Versions that aren't here become None in the history.

    Args:
        registry: where to.
        other: where from.
        name: the adapter, called the same in both.
        numbers: the numbers here by those in the other registry.
        means: what the aliases mean in the other registry, by the numbers there.

    Returns:
        Pairs of an alias and what it stays on here, for those that stay.

    Raises:
        LoraryError: an alias, a time or a reason there can't be one.
    """
    moves: defaultdict[str, list[AliasMove]] = defaultdict(list)
    for move in other.alias_history(name):
        moves[move.alias].append(_translated(move, other.path, numbers))
    with writing(registry.path) as db:
        carried = [
            (alias, _carry(db, registry.path, name, alias, moves[alias], numbers.get(means.get(alias, 0))))
            for alias in sorted({*moves, *means})
        ]
    yield from ((alias, f"stays on {name}@{stays} here") for alias, stays in carried if stays is not None)


def _carry(
    db: Database, path: Path, name: str, alias: str, moves: Sequence[AliasMove], target: int | None
) -> int | None:
    """Carry one alias over; the number that it stays on, where it means another version here."""
    adapter_id = adapter_of(db, name, path)
    now = meaning(db, adapter_id, check_name(alias, "alias"))
    if now is None and not history(db, adapter_id, name, alias):
        ids: dict[int, int] = {}
        for move in moves:
            ids[move.id] = insert_move(db, adapter_id, replace(move, undoes=ids.get(move.undoes or 0)))
        if moves and (now := moves[-1].to_number) is not None:
            point_alias(db, adapter_id, alias, locate_id(db, f"{name}@{now}", path))
    elif now not in (None, target):
        return now if target is not None else None
    if target is not None and now != target:  # also one that is older than the history, or was moved behind it
        set_alias(db, locate_id(db, f"{name}@{target}", path), alias, signature(_WHY))
    return None


def _translated(move: AliasMove, path: Path, numbers: Mapping[int, int]) -> AliasMove:
    before, after = ("-" if number is None else number for number in (move.from_number, move.to_number))
    folder = own_folder(path.parent) or str(path.parent)
    return replace(
        move,
        from_number=numbers.get(move.from_number or 0),
        to_number=numbers.get(move.to_number or 0),
        at=check_time(move.at) or check_line(move.at, "a move's time"),
        who=check_line(move.who, "the user of a move"),
        why=check_line(move.why or "", "the reason of a move") or None,
        # Of a move that came from elsewhere before, the place where it was made.
        origin=check_line(move.origin, "the origin of a move")
        if move.origin
        else clean(f"{folder}/{path.name}: {before} to {after}"),
    )
