"""What a push sends: a version's files, its card, and what the catalogue knows of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lorary.hub.card import make_card
from lorary.hub.errors import ChangedFilesError, InvalidReferenceError, UnknownReferenceError
from lorary.hub.provenance.cleaning import cleaned
from lorary.hub.provenance.private import public_base
from lorary.hub.registry import Registry
from lorary.hub.remote.address import SCHEME
from lorary.hub.remote.base import CARD_NAME, Parcel
from lorary.hub.remote.versionfile import VERSION_NAME, Parent, VersionFile
from lorary.hub.tables.links import links
from lorary.hub.values import FileEntry, Version


def pack(registry: Registry, version: Version, remote: str, number: int, before: Mapping[int, str]) -> Parcel:
    """Put a version together for a remote, where it gets ``number`` after the versions ``before``.

    Raises:
        ChangedFilesError: the store's files aren't the version's any more.
        CheckpointError: they can't be read.
    """
    shared = remote.startswith(SCHEME)
    checkpoint = registry.checkpoint(version)
    if checkpoint.digest != version.digest:
        raise ChangedFilesError(
            f"{version.reference}: its files aren't what was registered; nothing was sent, `lorary verify` tells more"
        )
    # What is registered is clean; versions from before that was so may still name folders of this machine.
    with cleaned(checkpoint) as clean:
        texts = {name: path.read_bytes() for name, path in clean.files.items() if path != checkpoint.files[name]}
        checkpoint = replace(checkpoint, config=clean.config, manifest=clean.manifest)
    base = public_base(version.base_id) if version.base_id else None
    version = replace(version, base_id=base, manifest=checkpoint.manifest)
    contents: dict[str, Path | bytes] = {**checkpoint.files, **texts}
    contents.pop(CARD_NAME, None)
    stated = VersionFile(
        name=version.name,
        number=number,
        digest=version.digest,
        domain=version.domain,
        task=version.task,
        base=base,
        strategy=version.strategy,
        created_at=version.created_at,
        metrics=version.metrics,
        tags=version.tags,
        aliases=version.aliases,
        parents=tuple(_parent(registry, reference, shared) for reference in version.parents),
        files={name: _entry(part, version, name) for name, part in sorted(contents.items())},
        versions={**before, number: version.digest},
    )
    contents[CARD_NAME] = make_card(version, checkpoint, repo=None if shared else remote).encode()
    contents[VERSION_NAME] = stated.to_json().encode()
    return Parcel(stated, contents)


def _entry(part: Path | bytes, version: Version, name: str) -> FileEntry:
    if isinstance(part, bytes):
        return FileEntry(hashlib.sha256(part).hexdigest(), len(part))
    return version.files[name]


def _parent(registry: Registry, reference: str, shared: bool) -> Parent:
    """What others can know a parent by. Where our shared folders are is for those who share them, not for the Hub."""
    if reference.startswith(SCHEME) and not shared:
        return Parent(reference.rpartition("/")[2])
    try:
        parent = registry.resolve(reference)
    except (UnknownReferenceError, InvalidReferenceError):  # it was removed, or was never here
        return Parent(reference, remote=reference if "/" in reference else None)
    places = [
        f"{link.remote}@{link.commit}"
        for link in links(registry.path, parent.name)
        if link.number == parent.number and (shared or not link.remote.startswith(SCHEME))
    ]
    return Parent(parent.reference, parent.digest, places[-1] if places else None)
