"""Pull: a version on a remote becomes one of the catalogue."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lorary.hub.checkpoint import CONFIG_NAME, Checkpoint, read_checkpoint
from lorary.hub.errors import (
    ChangedFilesError,
    InvalidReferenceError,
    RegistryConflictError,
    RemoteError,
    UsageError,
)
from lorary.hub.files.store import hash_file
from lorary.hub.importing.origin import embedding_beside, with_origin
from lorary.hub.provenance.base_name import demand_base, on_base, unknown_base
from lorary.hub.reference import HubReference, check_name
from lorary.hub.registry import Registry
from lorary.hub.remote.address import Address, parse_address
from lorary.hub.remote.base import CARD_NAME, Fetched, Remote
from lorary.hub.remote.places import open_remote
from lorary.hub.remote.versionfile import Parent, VersionFile
from lorary.hub.tables.links import adopt, links, remember
from lorary.hub.values import Version

_NUMBERED = re.compile(r"v[0-9]+")
_SPELLING = re.compile(r"[^a-z0-9._-]+")


@dataclass(frozen=True)
class Pulled:
    """What a pull did: ``number`` is the version's on the remote (None without one), ``new`` is False where the
    catalogue had it. ``aliases`` were set here; ``kept`` are names that it has there and not here. ``note`` is what to
    know of its base, where its files don't tell which it is, and of how it makes embeddings, where that isn't known.
    """

    version: Version
    remote: str
    commit: str
    number: int | None
    new: bool
    aliases: tuple[str, ...]
    kept: tuple[str, ...]
    note: str | None = None


def pull(
    registry: Registry,
    source: str,
    *,
    name: str | None = None,
    domain: str | None = None,
    task: str | None = None,
    base: str | None = None,
    changed: bool = False,
) -> Pulled:
    """Fetch a version and register it as the next one of its name, with its metrics, tags and parents.

    The revision is resolved to a commit once; each file is held against the remote's hash of it, and the digest against
    what ``lorary-version.json`` states. The same digest again is the version that is there. Nothing of what arrives is
    run. Adapters made without lorary carry less: then ``domain`` (and the task, where PEFT leaves it open) must be
    given.

    Args:
        registry: the catalogue.
        source: ``user/repo[@revision]`` or ``file:///a/shared/folder/name[@v3]``.
        name: what to call it here; by default what it is called there, unless that is a name of this registry that
            never had to do with the remote.
        domain: its subject matter; by default what the version says.
        task: a pipeline tag; by default what the version says.
        base: the id of the base of an adapter made without lorary, or its folder, of which only the name is kept; by
            default what its config says.
        changed: take files that were changed since they were pushed, as an adapter made without lorary.

    Raises:
        UnknownReferenceError: no such repository, revision or folder.
        UsageError: neither the version nor the caller says the domain or the task.
        ChangedFilesError: the files aren't those that were pushed.
        UnsafeFileError: a pickle, a link, or a file of an absurd size.
        CheckpointError: what is there isn't an adapter.
        RegistryConflictError: the name is another adapter's here, or stands for another domain or task.
        RemoteError: the remote refuses, fails or can't be reached.
    """
    address = parse_address(source)
    remote = open_remote(address)
    with remote.fetch(address.revision) as fetched:
        checkpoint = read_checkpoint(fetched.files, shown=source)
        stated = None if changed else fetched.stated
        if stated is not None:
            checkpoint = replace(checkpoint, catalogued_task=stated.task)
            _check_number(stated, address.revision, source)
            _check(stated, checkpoint, fetched, source)
        chosen = name if name is not None else _name(stated, address)
        digests = set(registry.digests(check_name(chosen)).values())
        there = {one.digest: one for one in registry.each(chosen) if isinstance(one, Version)}
        if name is None and digests and checkpoint.digest not in digests:
            _demand_known(registry, chosen, remote.address)
        wanted = [alias for alias in (fetched.aliases if stated is not None else ()) if _is_alias(alias)]
        # Those of a name that is new here; of one that has other versions they are its owner's to move.
        free = wanted if digests <= {checkpoint.digest} else []
        foreign = stated is None and checkpoint.manifest is None
        embedding, other = embedding_beside(fetched.files[CONFIG_NAME].parent) if foreign else (None, None)
        told = {"embedding": embedding.told()} if embedding else {}
        with on_base(checkpoint, base) as named, with_origin(named, told) as based:
            notes = [note for note in (unknown_base(based), other) if note]
            demand_base(there.get(checkpoint.digest), based, base, registry.path)
            version = _register(registry, based, stated, remote, chosen, domain, task, free)
    remember(registry, version.reference, remote.address, fetched.commit)
    number = stated.number if stated else None
    places = (fetched.commit, f"v{number}") if number else (fetched.commit,)
    adopt(registry, version.reference, [f"{remote.address}@{place}" for place in places])
    version = registry.resolve(version.reference)
    before = there.get(version.digest)
    given = tuple(alias for alias in version.aliases if alias in free and not (before and alias in before.aliases))
    kept = tuple(alias for alias in wanted if alias not in version.aliases)
    return Pulled(
        version, remote.address, fetched.commit, number, before is None, given, kept, "; ".join(notes) or None
    )


def _register(
    registry: Registry,
    checkpoint: Checkpoint,
    stated: VersionFile | None,
    remote: Remote,
    name: str,
    domain: str | None,
    task: str | None,
    aliases: Sequence[str],
) -> Version:
    if stated is None:
        try:
            return registry.add(checkpoint, name=name, domain=domain, task=task, strategy="import")
        except UsageError as error:
            raise UsageError(f"{error} (--domain and --task say what an adapter doesn't)") from error
    known, absent = _parents(registry, stated, remote)
    return registry.add(
        checkpoint,
        name=name,
        domain=domain or stated.domain,
        task=task or stated.task,
        metrics=stated.metrics,
        tags=stated.tags,
        parents=known,
        absent_parents=absent,
        strategy=stated.strategy,
        aliases=aliases,
        only_free=True,
        why=f"pulled from {remote.address}",
    )


def _parents(registry: Registry, stated: VersionFile, remote: Remote) -> tuple[list[str], list[str]]:
    """The parents that are here, under their references here, and those that aren't, under where they are."""
    known: list[str] = []
    absent: list[str] = []
    for parent in stated.parents:
        if parent.digest and (here := registry.with_digest(parent.digest)):
            known.append(here[0].reference)
        else:
            absent.append(parent.remote or _elsewhere(parent, stated, remote))
    return known, absent


def _elsewhere(parent: Parent, stated: VersionFile, remote: Remote) -> str:
    # A number is of one registry only: as a reference here it could mean another adapter.
    numbers = [number for number, digest in stated.versions.items() if digest == parent.digest]
    return f"{remote.address}@v{numbers[0]}" if numbers else f"{remote.address}#{parent.reference}"


def _check_number(stated: VersionFile, revision: str | None, source: str) -> None:
    if revision and _NUMBERED.fullmatch(revision) and revision != f"v{stated.number}":
        raise RemoteError(
            f"{source}: the tag {revision} leads to version {stated.number} there; "
            "whoever has that version can set it right with `lorary push`"
        )


def _check(stated: VersionFile, checkpoint: Checkpoint, fetched: Fetched, source: str) -> None:
    mend = (
        f"it was changed since it was pushed as v{stated.number}; pull a revision from before, "
        "or take it as it is with --changed"
    )
    for name, entry in stated.files.items():
        if name not in fetched.files:
            raise ChangedFilesError(f"{source}: {name} is missing; {mend}")
        if hash_file(fetched.files[name]) != entry:
            raise ChangedFilesError(f"{source}: {name} isn't the file that was pushed; {mend}")
    if extra := set(fetched.files) - set(stated.files) - {CARD_NAME}:
        raise ChangedFilesError(f"{source}: {min(extra)} wasn't pushed with it; {mend}")
    if checkpoint.digest != stated.digest:
        raise ChangedFilesError(
            f"{source}: its files have the digest {checkpoint.digest[:12]}..., its description states "
            f"{stated.digest[:12]}...; {mend}"
        )


def _demand_known(registry: Registry, name: str, remote: str) -> None:
    """What it calls itself, whoever made it chose: it doesn't become the latest version of a name of ours by that."""
    if all(link.remote != remote for link in links(registry.path, name)):
        raise RegistryConflictError(
            f"{remote}: calls itself {name}, which is another adapter's name here; --name {name} makes it that one's "
            f"next version all the same, --name {name}-2 (or any other) keeps it apart"
        )


def _name(stated: VersionFile | None, address: Address) -> str:
    if stated is not None:
        return check_name(stated.name)
    called = address.repo.partition("/")[2] if isinstance(address, HubReference) else address.path.name
    return check_name(_SPELLING.sub("-", called.lower()).strip("._-"))


def _is_alias(tag: str) -> bool:
    try:
        return bool(check_name(tag, "alias"))
    except InvalidReferenceError:
        return False
