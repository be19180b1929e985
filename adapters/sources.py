"""From a reference to a checkpoint: the registry, a folder or the Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from lorary.hub.checkpoint import CONFIG_NAME, KEPT_FILES, WEIGHTS_NAME, Checkpoint, read_checkpoint
from lorary.hub.errors import CheckpointError, InvalidReferenceError, LoraryError, UnknownReferenceError
from lorary.hub.reference import FolderReference, HubReference, RegistryReference, parse_reference
from lorary.hub.registry import Registry
from lorary.hub.remote.base import check_listing
from lorary.hub.remote.wording import line, why

_COMMIT = re.compile(r"[0-9a-f]{40}")


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

    Of a repository on the Hub the adapter's own files are fetched into the local Hugging Face cache, and no others; a
    commit that is there already needs no network. A revision is the adapter's, never its base's.

    Raises:
        InvalidReferenceError: the text isn't a reference.
        UnknownReferenceError: it names nothing in the registry, or nothing that can be had from the Hub.
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
    """Fetch an adapter's files, and no others, into the local cache, after a look at the list of what is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    fetch = partial(snapshot_download, reference.repo, revision=reference.revision, allow_patterns=list(KEPT_FILES))
    try:
        if _COMMIT.fullmatch(reference.revision or "") and _complete(folder := Path(fetch(local_files_only=True))):
            return folder
    except Exception:  # not there yet, or not a name: the next call says so
        pass
    try:
        _look(reference)
        folder = Path(fetch())
    except LoraryError:
        raise
    except HFValidationError as error:
        raise InvalidReferenceError(f"{reference.repo!r} can't be a repository on the Hub: {line(error)}") from error
    except Exception as error:  # what httpx, hf_xet and the JSON reader raise passes through the client as it is
        raise UnknownReferenceError(
            f"{str(reference)!r} can't be had from the Hub: "
            + why(error, reference.repo, reference.revision, hint=f"a folder is written ./{reference.repo}")
        ) from error
    if not _complete(folder):
        raise CheckpointError(f"{reference}: not all of its files arrived; try again")
    return folder


def _look(reference: HubReference) -> None:
    """Refuse what is no adapter, or an absurdly large one, before anything is fetched."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError

    try:
        info = HfApi().model_info(reference.repo, revision=reference.revision, files_metadata=True)
    except HFValidationError:
        raise
    except Exception:  # what is in the cache serves without the Hub; where nothing is, fetching tells why
        return
    check_listing({file.rfilename: file.size for file in info.siblings or ()}, str(reference))


def _complete(folder: Path) -> bool:
    return all((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME))
