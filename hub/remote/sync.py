"""Sync: pull what is behind, push what is ahead, and leave alone what is both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lorary.hub.errors import LoraryError, UnknownReferenceError
from lorary.hub.registry import Registry
from lorary.hub.remote.base import Remote
from lorary.hub.remote.compare import Comparison
from lorary.hub.remote.pull import Pulled, pull
from lorary.hub.remote.push import Pushed, push
from lorary.hub.remote.status import look, remotes_of


@dataclass(frozen=True)
class Synced:
    """What became of one name and one remote; ``before`` is how they stood, ``problem`` what broke it off."""

    before: Comparison
    pulled: tuple[Pulled, ...]
    pushed: tuple[Pushed, ...]
    problem: str | None = None

    @property
    def settled(self) -> bool:
        """True where both have the same versions now."""
        return self.problem is None and self.before.relation in ("same", "ahead", "behind")


def sync(registry: Registry, name: str | None = None, watch: Callable[[str], None] = lambda _: None) -> list[Synced]:
    """Bring every name that has a remote, or the one given, and its remote to the same versions.

    Nothing is overwritten: where both have versions that the other lacks, neither changes. Aliases that are here stay.

    Raises:
        UnknownReferenceError: the name isn't in the registry, or has no remote.
    """
    done = []
    for called, remote in remotes_of(registry, name):
        watch(f"asking {remote.address}")
        done.append(_settle(registry, remote, look(registry, called, remote), watch))
    return done


def _settle(registry: Registry, remote: Remote, before: Comparison, watch: Callable[[str], None]) -> Synced:
    pulled: list[Pulled] = []
    pushed: list[Pushed] = []
    problem = before.problem
    try:
        for number in before.behind if before.relation == "behind" else ():
            watch(f"fetching {before.remote}{f'@v{number}' if number else ''}")
            pulled.append(_pull(registry, remote, before.name, number))
        for number in before.ahead if before.relation == "ahead" else ():
            pushed.append(push(registry, f"{before.name}@{number}", before.remote, watch=watch))
    except LoraryError as error:  # of this one; the others go on
        problem = str(error)
    return Synced(before, tuple(pulled), tuple(pushed), problem)


def _pull(registry: Registry, remote: Remote, name: str, number: int) -> Pulled:
    if not number:
        known = registry.resolve(name)  # an adapter without a number doesn't say what it is for
        return pull(registry, remote.address, name=name, domain=known.domain, task=known.task)
    try:
        return pull(registry, f"{remote.address}@v{number}", name=name)
    except UnknownReferenceError:  # a push was killed between the version and its tag
        state = remote.state()
        commit = remote.commit_of(number, state) if state else None
        if commit is None:
            raise
        return pull(registry, f"{remote.address}@{commit}", name=name)
