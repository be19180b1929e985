"""The versions here against those on a remote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lorary.hub.registry import Registry
from lorary.hub.remote.base import State
from lorary.hub.tables.links import links

Relation = Literal["same", "ahead", "behind", "diverged", "missing", "unknown"]


@dataclass(frozen=True)
class AliasDifference:
    """An alias that means another version there than here; by number, None where it is missing."""

    alias: str
    here: int | None
    there: int | None


@dataclass(frozen=True)
class Comparison:
    """``ahead`` are the numbers here of versions that the remote lacks, ``behind`` the remote's that are lacking here.

    Only what is newer than the newest that both have counts. A 0 in ``behind`` is an adapter without a number: it was
    put there without lorary, or changed so. ``there`` is False where nothing has that address; ``problem`` says why the
    remote couldn't be asked.
    """

    name: str
    remote: str
    ahead: tuple[int, ...]
    behind: tuple[int, ...]
    aliases: tuple[AliasDifference, ...] = ()
    there: bool = True
    problem: str | None = None

    @property
    def relation(self) -> Relation:
        """In a word."""
        if self.problem is not None:
            return "unknown"
        if not self.there:
            return "missing"
        if self.ahead and self.behind:
            return "diverged"
        return "ahead" if self.ahead else "behind" if self.behind else "same"


def compare(registry: Registry, name: str, remote: str, state: State | None) -> Comparison:
    """Hold the versions of a name against a remote's state (None: it isn't there)."""
    here = registry.digests(name)
    if state is None:
        return Comparison(name, remote, tuple(sorted(here)), (), there=False)
    known = [link for link in links(registry.path, name) if link.remote == remote]
    foreign = state.changed or (state.adapter and not state.versions)
    unseen = (0,) if foreign and all(link.commit != state.commit for link in known) else ()
    if not state.versions:
        return Comparison(name, remote, _newer(here, max((link.number for link in known), default=0)), unseen)
    mine, theirs = set(here.values()), set(state.versions.values())
    shared_here = max((number for number, digest in here.items() if digest in theirs), default=0)
    shared_there = max((number for number, digest in state.versions.items() if digest in mine), default=0)
    differ = _aliases(registry.aliases(name), here, state)
    return Comparison(name, remote, _newer(here, shared_here), unseen + _newer(state.versions, shared_there), differ)


def _aliases(mean: Mapping[str, int], here: Mapping[int, str], state: State) -> tuple[AliasDifference, ...]:
    found = []
    for alias in sorted({*mean, *state.aliases}):
        mine, theirs = mean.get(alias), state.aliases.get(alias)
        if (here[mine] if mine else None) != (state.versions[theirs] if theirs else None):
            found.append(AliasDifference(alias, mine, theirs))
    return tuple(found)


def _newer(numbers: Iterable[int], than: int) -> tuple[int, ...]:
    return tuple(sorted(number for number in numbers if number > than))
