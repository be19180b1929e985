"""The values that the catalogue hands out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lorary.hub.manifest import Manifest


@dataclass(frozen=True)
class FileEntry:
    """One file of a version: the sha256 (hex) of its content and its size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True)
class Version:
    """One immutable trained state of a named adapter, as the catalogue knows it.

    ``metrics`` maps a split to its metrics: ``test`` is the trained adapter on held-out rows, ``untrained`` the same
    rows before training, ``majority``, ``mean``, ``unigram``, ``lead-3`` and ``copy`` what they score without a model,
    ``train`` and ``validation`` the trained adapter on rows of these splits. ``parents`` and the :attr:`reference` have
    the form ``name@3``; ``size_bytes`` is the weights'; ``created_at`` is ISO 8601 in UTC.
    """

    name: str
    number: int
    digest: str
    domain: str
    task: str
    base_id: str | None
    base_fingerprint: str | None
    method: str
    quantization: str
    rank: int | None
    parameters: int
    size_bytes: int
    created_at: str
    strategy: str
    metrics: Mapping[str, Mapping[str, float]]
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    parents: tuple[str, ...]
    files: Mapping[str, FileEntry] = field(repr=False)  # as a notebook shows a version, these two would be pages of it
    manifest: Manifest | None = field(repr=False)

    @property
    def reference(self) -> str:
        """``name@number``, which names this version for good."""
        return f"{self.name}@{self.number}"


@dataclass(frozen=True)
class Unreadable:
    """A version whose row in the catalogue is damaged, by its ``reference``; ``problem`` says what is wrong with it."""

    reference: str
    problem: str

    def __str__(self) -> str:
        return f"{self.reference}: {self.problem}"


@dataclass(frozen=True)
class AliasMove:
    """One move in the history of ``name@alias``: from one version's number to another's.

    ``from_number`` is None where the alias meant nothing before, ``to_number`` where it was taken away. ``at`` is ISO
    8601 in UTC. A rollback's ``undoes`` is the ``id`` of the move that it takes back, with all moves since. ``origin``
    is set where the move was made in another registry: its file and the numbers there. Versions that never came from
    there are None.
    """

    id: int
    name: str
    alias: str
    from_number: int | None
    to_number: int | None
    at: str
    who: str
    why: str | None
    undoes: int | None
    origin: str | None = None


@dataclass(frozen=True)
class PretrainedBase:
    """A base model that was pretrained here, as the catalogue knows it.

    ``digest`` is over its ``files``, which are in ``folder``; ``fingerprint`` is what adapters know it by.
    ``provenance`` says how it was made, in JSON values.
    """

    name: str
    fingerprint: str
    digest: str
    architecture: str
    parameters: int
    created_at: str
    metrics: Mapping[str, Mapping[str, float]]
    provenance: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    folder: Path


@dataclass(frozen=True)
class Finding:
    """Something that verifying came upon: an ``error``, or a ``note`` on what is harmless.

    ``reference`` is the version it concerns, None for the registry as a whole.
    """

    reference: str | None
    message: str
    level: Literal["error", "note"] = "error"


@dataclass(frozen=True)
class Collected:
    """What a collection deleted, or would delete: how many objects, unfinished copies and bases' folders, how much.

    ``busy`` copies were left alone, since a command is at work in them; ``problems`` says what couldn't be deleted.
    """

    objects: int
    copies: int
    bases: int
    bytes: int
    busy: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One requirement of a promotion: whether it is ``met``, and what was found."""

    requirement: str
    met: bool
    found: str


@dataclass(frozen=True)
class Promotion:
    """How a promotion went: ``name@alias`` means ``to_number`` now, and meant ``from_number`` before.

    The two are equal where it meant that version already. ``notes`` are worth knowing and no hindrance.
    """

    name: str
    alias: str
    from_number: int | None
    to_number: int
    checks: tuple[Check, ...]
    notes: tuple[str, ...]
