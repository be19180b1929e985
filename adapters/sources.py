"""From a reference to a checkpoint: the registry, a folder or the Hub."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorary.hub.checkpoint import KEPT_FILES, Checkpoint, read_checkpoint
from lorary.hub.errors import UnknownReferenceError
from lorary.hub.reference import FolderReference, HubReference, parse_reference
from lorary.hub.registry import Registry


@dataclass(frozen=True)
class Source:
    """A checkpoint, the name to load it under when none is given, and the reference that leads back to it."""

    checkpoint: Checkpoint
    name: str
    reference: str


def find_checkpoint(reference: str | Path | Checkpoint, registry: Registry) -> Source:
    """Read the checkpoint that a reference stands for.

    Raises:
        UnknownReferenceError: it names nothing in the registry or on the Hub.
        CheckpointError: what it names isn't a readable checkpoint.
    """
    if isinstance(reference, Checkpoint):
        return Source(reference, Path(reference.source).name, reference.source)
    if isinstance(reference, Path):
        return Source(read_checkpoint(reference), reference.resolve().name, str(reference))
    parsed = parse_reference(reference)
    if isinstance(parsed, FolderReference):
        return Source(read_checkpoint(parsed.path), parsed.path.resolve().name, str(parsed))
    if isinstance(parsed, HubReference):
        return Source(read_checkpoint(_download(parsed)), parsed.repo.partition("/")[2], str(parsed))
    version = registry.resolve(reference)
    return Source(registry.checkpoint(version), version.name, version.reference)


def _download(reference: HubReference) -> Path:
    """Fetch an adapter's files, and no others, into the local cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(reference.repo, revision=reference.revision, allow_patterns=list(KEPT_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UnknownReferenceError(
            f"{str(reference)!r} can't be had from the Hub: {first} (a folder is written ./{reference.repo})"
        ) from error
    return Path(folder)
