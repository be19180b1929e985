"""Fetching a repository's files into the local Hugging Face cache, and holding each against what the Hub says of it."""

from __future__ import annotations

import hashlib
import re
import secrets
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.checkpoint import CONFIG_NAME, KEPT_FILES, WEIGHTS_NAME
from lorary.hub.embedding import EMBEDDING_FILES
from lorary.hub.errors import ChangedFilesError, RemoteError
from lorary.hub.files.store import hash_file
from lorary.hub.remote.bars import bars
from lorary.hub.remote.calls import ask
from lorary.hub.remote.versionfile import VERSION_NAME

if TYPE_CHECKING:
    from huggingface_hub import ModelInfo
    from huggingface_hub.hf_api import RepoSibling

COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


def model_info(repo: str, revision: str | None, hint: str = "") -> ModelInfo:
    """What the Hub knows of a repository at a revision: its commit, and the size and hash of each file.

    Raises:
        UnknownReferenceError: no such repository or revision.
        RemoteError: the Hub refuses, fails or can't be reached.
    """
    from huggingface_hub import HfApi

    question = partial(HfApi().model_info, repo, revision=revision, files_metadata=True)
    return ask(question, repo, revision=revision, hint=hint)


def commit_of(info: ModelInfo, shown: str) -> str:
    """The commit that the Hub resolved a revision to."""
    if not isinstance(info.sha, str) or not COMMIT.fullmatch(info.sha):
        raise RemoteError(f"{shown}: the Hub names no commit for it ({info.sha!r}); try again later")
    return info.sha


def sizes(info: ModelInfo) -> dict[str, int | None]:
    """Bytes of each file, by name; None where the Hub doesn't say it in a number."""
    return {
        sibling.rfilename: sibling.size if type(sibling.size) is int and sibling.size >= 0 else None
        for sibling in info.siblings or ()
    }


def download(repo: str, info: ModelInfo, names: Collection[str]) -> Path:
    """The folder in the local cache where the files are now, each held against the hash that the Hub lists.

    Raises:
        RemoteError: the Hub fails, or there is no room for the files.
        ChangedFilesError: a file isn't what the Hub says; the next attempt fetches it anew.
    """
    from huggingface_hub import constants, snapshot_download

    commit = commit_of(info, repo)
    listed = {sibling.rfilename: sibling for sibling in info.siblings or () if sibling.rfilename in names}
    total = sum(size or 0 for name, size in sizes(info).items() if name in names)
    place = Path(constants.HF_HUB_CACHE)
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    if total > free:
        raise RemoteError(f"{repo}: takes {total:,} bytes, but {place} has room for {free:,}; make room first")
    with bars(shown=names != [VERSION_NAME], expected=total) as bar:
        fetch = partial(snapshot_download, repo, revision=commit, allow_patterns=sorted(names), tqdm_class=bar)
        # The client itself repeats what fails here.
        folder = Path(ask(fetch, repo, revision=commit[:12], again=lambda _: False, patience=None))
    shown = f"{repo}@{commit[:12]}"
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise RemoteError(f"{shown}: {missing[0]} didn't arrive; try again")
    _check(folder, {name: _listed_hash(sibling) for name, sibling in listed.items()}, shown)
    return folder


def remember_revision(folder: Path, revision: str | None) -> None:
    """Let the cache know that a branch or a tag (None: ``main``) leads to this folder, for when the Hub can't be asked.

    The cache's format: https://huggingface.co/docs/huggingface_hub/guides/manage-cache.
    """
    refs, commit = folder.parent.parent / "refs", folder.name
    place = refs / (revision or "main")
    if revision == commit or ".." in place.parts or not place.is_relative_to(refs):
        return
    with suppress(OSError):  # a cache that can't be written is no reason to fail
        place.parent.mkdir(parents=True, exist_ok=True)
        temporary = place.with_name(f"{place.name}.{secrets.token_hex(8)}")
        temporary.write_text(commit)
        temporary.replace(place)


def downloaded(repo: str, revision: str | None) -> Path | None:
    """The adapter's folder in the local cache as it was fetched before, each file held against what the Hub said then.

    None where it isn't there, or not all of it. The network isn't asked.

    Raises:
        ChangedFilesError: a file isn't what was fetched any more; the next attempt fetches it anew.
    """
    from huggingface_hub import snapshot_download

    wanted = [*KEPT_FILES, *EMBEDDING_FILES]
    fetch = partial(snapshot_download, repo, revision=revision, allow_patterns=wanted, local_files_only=True)
    try:
        folder = Path(fetch())
    except Exception:  # not there, or not a name: asking the Hub says which
        return None
    there = [name for name in wanted if (folder / name).is_file()]
    if not {CONFIG_NAME, WEIGHTS_NAME} <= set(there):
        return None
    _check(folder, {name: _named_hash(folder / name) for name in there}, f"{repo}@{folder.name[:12]}")
    return folder


def _listed_hash(sibling: RepoSibling) -> str | None:
    return sibling.blob_id if sibling.lfs is None else sibling.lfs.sha256


def _named_hash(path: Path) -> str | None:
    """The cache names its blobs by the ETag, which is the Hub's hash: git's for small files, sha256 for LFS objects."""
    name = path.resolve().name
    return name if path.is_symlink() and (COMMIT.fullmatch(name) or _SHA256.fullmatch(name)) else None


def _check(folder: Path, hashes: Mapping[str, str | None], shown: str) -> None:
    """The client checks sizes only."""
    for name, stated in hashes.items():
        path = folder / name
        real = path.resolve()
        status = real.stat()
        if stated is None or _matches(real, stated, (status.st_ino, status.st_size, status.st_mtime_ns)):
            continue
        real.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise ChangedFilesError(
            f"{shown}: {name} isn't what the Hub says it is, it was damaged on its way or on the disk; try again"
        )


@cache
def _matches(path: Path, stated: str, _state: tuple[int, int, int]) -> bool:
    """Once for each state that a file is in: a warm load reads it no second time."""
    return (hash_file(path).sha256 if _SHA256.fullmatch(stated) else _git_hash(path)) == stated


def _git_hash(path: Path) -> str:
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
