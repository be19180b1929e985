"""Status: which names are ahead of their remotes, and which behind."""

from __future__ import annotations

from collections.abc import Callable

from lorary.hub.errors import LoraryError, UnknownReferenceError
from lorary.hub.reference import check_name
from lorary.hub.registry import Registry
from lorary.hub.remote.address import parse_address
from lorary.hub.remote.base import Remote
from lorary.hub.remote.compare import Comparison, compare
from lorary.hub.remote.places import open_remote
from lorary.hub.tables.links import links


def status(
    registry: Registry, name: str | None = None, watch: Callable[[str], None] = lambda _: None
) -> list[Comparison]:
    """Hold every name that has a remote, or the one given, against it; ``watch`` is told whom it asks.

    Raises:
        UnknownReferenceError: the name isn't in the registry, or has no remote.
    """
    found = []
    for called, remote in remotes_of(registry, name):
        watch(f"asking {remote.address}")
        found.append(look(registry, called, remote))
    return found


def look(registry: Registry, name: str, remote: Remote) -> Comparison:
    """One name against one remote; a remote that can't be asked is a finding, since the others still can."""
    try:
        return compare(registry, name, remote.address, remote.state())
    except LoraryError as error:
        return Comparison(name, remote.address, (), (), problem=str(error))


def remotes_of(registry: Registry, name: str | None) -> list[tuple[str, Remote]]:
    """The names that have a remote, each with it."""
    if name is not None and not registry.numbers(check_name(name)):
        registry.resolve(name)  # raises: it isn't there
    known = sorted({(link.name, link.remote) for link in links(registry.path, name)})
    if not known and name is not None:
        raise UnknownReferenceError(f"{name!r} has no remote yet; `lorary push {name}` or `lorary pull` makes one")
    return [(called, open_remote(parse_address(remote))) for called, remote in known]
