"""What a remote is: a place with the versions of one adapter, that only ever gets more of them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lorary.hub.checkpoint import (
    CONFIG_NAME,
    GOLDEN_NAME,
    KEPT_FILES,
    MAX_TEXT_BYTES,
    ORIGIN_NAME,
    RECIPE_NAME,
    WEIGHTS_NAME,
)
from lorary.hub.embedding import EMBEDDING_FILES
from lorary.hub.errors import CheckpointError, UnsafeFileError
from lorary.hub.manifest import MANIFEST_NAME
from lorary.hub.remote.versionfile import MAX_BYTES, VERSION_NAME, VersionFile

CARD_NAME = "README.md"
PICKLED = "adapter_model.bin"  # PEFT's weights of old
WANTED = frozenset({*KEPT_FILES, VERSION_NAME})
"""The files that are fetched; whatever else lies there stays there."""

_TOLD = 5
# Bytes; an adapter beyond that is a mistake or an attack.
_LIMIT = 100_000_000  # the largest tokenizers take 40 MB
_LIMITS = {
    **dict.fromkeys((WEIGHTS_NAME, GOLDEN_NAME), 20_000_000_000),
    **dict.fromkeys(
        (CONFIG_NAME, MANIFEST_NAME, ORIGIN_NAME, RECIPE_NAME, CARD_NAME, *EMBEDDING_FILES), MAX_TEXT_BYTES
    ),
    VERSION_NAME: MAX_BYTES,
}


@dataclass(frozen=True)
class State:
    """What is on a remote now.

    ``commit`` is where it stands. ``versions`` maps each number to its digest, ``commits`` those whose place is known
    to it; both are empty where the adapter there was made without lorary (``adapter`` is True), or where there is none.
    ``aliases`` maps a movable name to a number, ``tags`` every name to its commit. ``changed``: the latest version's
    weights aren't those that were pushed.
    """

    commit: str
    adapter: bool
    files: frozenset[str] = frozenset()
    versions: Mapping[int, str] = field(default_factory=dict)
    commits: Mapping[int, str] = field(default_factory=dict)
    aliases: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    latest: VersionFile | None = None
    changed: bool = False

    def number_of(self, digest: str) -> int | None:
        """The newest number that a digest has there."""
        return max((number for number, known in self.versions.items() if known == digest), default=None)


@dataclass(frozen=True)
class Fetched:
    """A version's files as they arrived, checked against what the remote says of each."""

    commit: str
    files: Mapping[str, Path]
    stated: VersionFile | None
    aliases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Parcel:
    """What a push sends: contents by name (a path, or the bytes themselves), and the file that describes them."""

    stated: VersionFile
    contents: Mapping[str, Path | bytes]

    @property
    def size_bytes(self) -> int:
        """Of all contents."""
        return sum(len(part) if isinstance(part, bytes) else part.stat().st_size for part in self.contents.values())


class Remote(Protocol):
    """A repository on the Hub, or an adapter's folder in a shared one; ``address`` is how it is written."""

    @property
    def address(self) -> str:
        """As the user writes it, without a revision."""

    def state(self) -> State | None:
        """What is there; None when nothing has that address yet."""

    def fetch(self, revision: str | None) -> AbstractContextManager[Fetched]:
        """The files at a revision (by default the latest), for as long as the context lasts."""

    def publish(self, parcel: Parcel, seen: State | None, *, message: str, public: bool) -> str:
        """Add a version all at once, or not at all; returns its commit.

        Raises:
            RemoteConflictError: the remote isn't as it was ``seen`` any more.
        """

    def commit_of(self, number: int, state: State) -> str | None:
        """Where a version is; None when it can't be found."""

    def point(self, number: int, commit: str, aliases: Collection[str], state: State) -> list[str]:
        """Let the version's own name and the aliases lead to it; returns what had to change."""


def check_listing(sizes: Mapping[str, int | None], source: str) -> list[str]:
    """The names to fetch, sorted, after a look at all that is there.

    Raises:
        UnsafeFileError: the weights are a pickle only, or a file is of an absurd size.
        CheckpointError: no adapter is there.
    """
    if CONFIG_NAME not in sizes or WEIGHTS_NAME not in sizes:
        if CONFIG_NAME in sizes and PICKLED in sizes:
            raise UnsafeFileError(_pickled(source))
        missing = CONFIG_NAME if CONFIG_NAME not in sizes else WEIGHTS_NAME
        whole = "; it looks like a whole model" if "config.json" in sizes and missing == CONFIG_NAME else ""
        raise CheckpointError(
            f"{source}: no {missing} there{whole}; expected an adapter as PEFT's save_pretrained writes it"
            f"{_below(sizes)}"
        )
    # Of an adapter with a manifest that says how embeddings are made.
    beside = EMBEDDING_FILES if MANIFEST_NAME not in sizes else frozenset()
    names = sorted((WANTED | beside) & set(sizes))
    for name in names:
        size, limit = sizes[name], _LIMITS.get(name, _LIMIT)
        if size is None or size > limit:
            found = "an unknown number of" if size is None else f"{size:,}"
            raise UnsafeFileError(
                f"{source}: {name} takes {found} bytes, expected at most {limit:,}; nothing was fetched"
            )
    return names


def _below(names: Collection[str]) -> str:
    """Where adapters are in a repository that has several, and how one of them is had."""
    folders = sorted({name.rpartition("/")[0] for name in names if name.endswith(f"/{CONFIG_NAME}")})
    if not folders:
        return ""
    return (
        f". There are some in the folders {', '.join(folders[:_TOLD])}: fetch one with `hf download --include` and "
        "`--local-dir`, and `lorary import` its folder"
    )


def _pickled(source: str) -> str:
    """What to tell of an adapter whose weights are a pickle only."""
    return (
        f"{source}: holds {PICKLED} but no {WEIGHTS_NAME}; pickles can run code and are never loaded. "
        "Load it where you trust it with PEFT and save it with save_pretrained"
    )


def stale(present: Collection[str], new: Collection[str]) -> Iterator[str]:
    """The adapter's files of before that the new version doesn't have: they would be taken for its own."""
    yield from sorted(((WANTED | {PICKLED}) & set(present)) - set(new))
