"""From a reference to a checkpoint: the registry, a folder or the Hub."""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from lorary.hub.checkpoint import CONFIG_NAME, Checkpoint, read_checkpoint
from lorary.hub.errors import ChangedFilesError, RemoteError, UnknownReferenceError
from lorary.hub.reference import FolderReference, HubReference, RegistryReference, parse_reference
from lorary.hub.registry import Registry
from lorary.hub.remote.base import check_listing
from lorary.hub.remote.download import COMMIT, download, downloaded, model_info, remember_revision, sizes
from lorary.hub.remote.versionfile import VERSION_NAME

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A checkpoint, the name to load it under when none is given, and the reference that leads back to it.

    ``digest`` is the one that the catalogue states; folders and the Hub state none.
    """

    checkpoint: Checkpoint
    name: str
    reference: str
    digest: str | None = None


def find_checkpoint(reference: str | Path | Checkpoint, registry: Registry) -> Source:
    """Read the checkpoint that a reference stands for.

    Of a repository on the Hub the adapter's own files are fetched into the local Hugging Face cache, and what
    sentence-transformers left beside them, and no others; a commit that is there already needs no network. A revision
    is the adapter's, never its base's.

    Raises:
        InvalidReferenceError: the text isn't a reference.
        UnknownReferenceError: it names nothing in the registry, or nothing on the Hub.
        RemoteError: the Hub refuses, fails or can't be reached, and the cache doesn't hold it.
        ChangedFilesError: a file isn't what the Hub says it is.
        CheckpointError: what it names isn't a readable checkpoint.
        UnsafeFileError: its weights are a pickle, or a file is a link out of its folder.
    """
    if isinstance(reference, Checkpoint):
        return Source(reference, _name_in(reference.source), reference.source)
    if isinstance(reference, Path):
        return Source(read_checkpoint(reference), reference.resolve().name, str(reference.absolute()))
    parsed = parse_reference(reference)
    if isinstance(parsed, FolderReference):
        return Source(read_checkpoint(parsed.path), parsed.path.resolve().name, str(parsed))
    if isinstance(parsed, HubReference):
        checkpoint = read_checkpoint(_download(parsed), shown=str(parsed))
        return Source(checkpoint, parsed.repo.partition("/")[2], str(parsed))
    return _registered(parsed, registry)


def demand_stated(source: Source, found: str) -> None:
    """Raise ChangedFilesError where the catalogue states another digest than the one that the files have."""
    if source.digest not in (None, found):
        raise ChangedFilesError(
            f"{source.checkpoint.source}: the catalogue states the digest {str(source.digest)[:12]}, its files have "
            f"{found[:12]}; `lorary verify` tells what has changed, put the files back or register them as a new "
            "version"
        )


def _name_in(source: str) -> str:
    """The name in what a checkpoint was read from: a folder's own, of a reference what stands before the @."""
    path = Path(source)
    return path.name if path.is_dir() else path.name.partition("@")[0]


def _registered(reference: RegistryReference, registry: Registry) -> Source:
    try:
        version = registry.resolve(str(reference))
    except UnknownReferenceError as error:
        if (Path(reference.name) / CONFIG_NAME).is_file():
            raise UnknownReferenceError(f"{error} (the folder here is written ./{reference.name})") from error
        raise
    return Source(registry.checkpoint(version), version.name, version.reference, version.digest)


def _download(reference: HubReference) -> Path:
    """Fetch an adapter's files, and no others, into the local cache, after a look at the list of what is there.

    A commit that is there already needs no network, and what was fetched last serves while the Hub doesn't.
    """
    repo, revision = reference.repo, reference.revision
    with suppress(ChangedFilesError):  # then it is fetched anew
        if COMMIT.fullmatch(revision or "") and (known := downloaded(repo, revision)):
            return known
    try:
        info = model_info(repo, revision, hint=f"a folder is written ./{repo}")
        names = check_listing(sizes(info), str(reference))
        folder = download(repo, info, [name for name in names if name != VERSION_NAME])
    except RemoteError as error:
        if known := downloaded(repo, revision):
            _LOGGER.warning("%s; commit %s was fetched before and serves", error, known.name[:12])
            return known
        raise
    remember_revision(folder, revision)
    return folder
