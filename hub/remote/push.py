"""Push: a version of the catalogue becomes one on a remote."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from shlex import quote

from lorary.hub.errors import RemoteConflictError, RemoteError, UsageError
from lorary.hub.reference import HubReference
from lorary.hub.registry import Registry
from lorary.hub.registry_path import suggested
from lorary.hub.remote.address import parse_address
from lorary.hub.remote.base import Parcel, Remote, State
from lorary.hub.remote.compare import Comparison, compare
from lorary.hub.remote.folder import SharedFolder
from lorary.hub.remote.parcel import pack
from lorary.hub.remote.places import open_remote, repository_of
from lorary.hub.tables.links import links, remember
from lorary.hub.values import Version

# A version's own name, the branch that all versions are on, and what git allows no tag to be
# (https://git-scm.com/docs/git-check-ref-format).
_NO_TAG = re.compile(r"v[0-9]+|main|.*\.\..*|.*\.lock")


@dataclass(frozen=True)
class Pushed:
    """What a push did, or would do.

    ``number`` is the version's on the remote and ``commit`` its place there (None in a dry run); ``parcel`` is what was
    sent, None where the version was there already; ``moved`` are the names that lead to it now and didn't before,
    ``withheld`` the aliases that can't be names there.
    """

    version: Version
    remote: str
    number: int
    commit: str | None
    created: bool
    parcel: Parcel | None
    moved: tuple[str, ...]
    withheld: tuple[str, ...]


def push(
    registry: Registry,
    reference: str,
    target: str | None = None,
    *,
    public: bool = False,
    message: str | None = None,
    dry_run: bool = False,
    watch: Callable[[str], None] = lambda _: None,
) -> Pushed:
    """Send a version to a remote, with its card, its metrics and its names.

    A version that is there already (the same digest) is not sent again; only the names that lead to it are set right.
    Numbers are the remote's own: the version keeps its number where that is still free.

    Args:
        registry: the catalogue.
        reference: ``name``, ``name@3`` or ``name@alias``.
        target: ``user/repo`` or ``file:///a/shared/folder``; by default the adapter's remote if it has one, else the
            repository of its name of the user who is logged in.
        public: make a new repository public; one that is there stays as it is.
        message: of the commit.
        dry_run: find out what would be done, and do nothing.
        watch: is told what is about to be done.

    Raises:
        UnknownReferenceError: no such version.
        RemoteConflictError: the remote has versions that this registry lacks, or somebody else pushed meanwhile.
        RemoteError: the remote refuses, fails or can't be reached.
    """
    version = registry.resolve(reference)
    remote = _remote(registry, version, target)
    seen = remote.state()
    if seen is None and isinstance(remote, SharedFolder):
        _demand_mounted(registry, version.name, remote)
    comparison = compare(registry, version.name, remote.address, seen)
    number = seen.number_of(version.digest) if seen else None
    if seen is not None and number is not None:
        return _there_already(registry, version, remote, seen, number, dry_run)
    _demand_nothing_unseen(registry, comparison, version, remote)
    number = max(version.number, max(seen.versions, default=0) + 1) if seen else version.number
    parcel = pack(registry, version, remote.address, number, seen.versions if seen else {})
    names, withheld = _names(version)
    if dry_run:
        return Pushed(version, remote.address, number, None, seen is None, parcel, (f"v{number}", *names), withheld)
    watch(f"sending {version.reference} to {remote.address}")
    text = message or f"{version.name} v{number}"
    commit = remote.publish(parcel, seen, message=text, public=public)
    remember(registry, version.reference, remote.address, commit)
    moved = remote.point(number, commit, names, seen or State(commit, adapter=True))
    return Pushed(version, remote.address, number, commit, seen is None, parcel, tuple(moved), withheld)


def _there_already(
    registry: Registry, version: Version, remote: Remote, seen: State, number: int, dry_run: bool
) -> Pushed:
    commit = remote.commit_of(number, seen)
    if commit is None:
        raise RemoteError(
            f"{remote.address}: lists {version.reference} as v{number}, but no commit there holds it; was its history "
            "rewritten? Push to another repository"
        )
    names, withheld = _names(version)
    if dry_run:
        wrong = tuple(name for name in (f"v{number}", *names) if seen.tags.get(name) != commit)
        return Pushed(version, remote.address, number, commit, False, None, wrong, withheld)
    remember(registry, version.reference, remote.address, commit)
    moved = remote.point(number, commit, names, seen)
    return Pushed(version, remote.address, number, commit, False, None, tuple(moved), withheld)


def _demand_mounted(registry: Registry, name: str, remote: SharedFolder) -> None:
    """Where a share isn't mounted there is an empty folder, and what is written into it isn't shared."""
    if not remote.path.exists() and any(link.remote == remote.address for link in links(registry.path, name)):
        raise RemoteError(
            f"{remote.address}: held {name} before and is gone; is it mounted? If it was deleted on purpose, make the "
            f"folder {remote.path} and push again"
        )


def _demand_nothing_unseen(registry: Registry, comparison: Comparison, version: Version, remote: Remote) -> None:
    if not comparison.behind:
        return
    there = ", ".join(f"v{number}" if number else "an adapter" for number in comparison.behind)
    pull = suggested(f"lorary pull {quote(str(remote.address))} --name {version.name}", registry.path)
    raise RemoteConflictError(
        f"{remote.address}: holds {there}, which this registry lacks, so {version.reference} wasn't pushed; "
        f"`{pull}` first, or push to another repository"
    )


def _names(version: Version) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The aliases that can be names on a remote, and those that can't."""
    good = tuple(alias for alias in version.aliases if not _NO_TAG.fullmatch(alias))
    return good, tuple(alias for alias in version.aliases if alias not in good)


def _remote(registry: Registry, version: Version, target: str | None) -> Remote:
    known = sorted({link.remote for link in links(registry.path, version.name)})
    if target is None:
        if len(known) > 1:
            raise UsageError(f"{version.name!r} has several remotes, say which: {', '.join(known)}")
        target = known[0] if known else repository_of(version.name)
    address = parse_address(target)
    if address.revision is not None:
        kind = "repository" if isinstance(address, HubReference) else "folder"
        raise UsageError(f"{target!r}: a push goes to a {kind}, not to a revision; leave @{address.revision} out")
    # What is known is the adapter's own folder, also where it isn't there any more.
    return open_remote(address, None if str(address) in known else version.name)
