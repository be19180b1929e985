"""``lorary-version.json``: what the catalogue knows of a version, beside its files on a remote.

It states the version's number there and its digest, so that who pulls can check what arrived, and what no other file
holds: metrics, tags, aliases, parents. ``versions`` is all that were ever pushed there, by number.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lorary.hub.errors import CheckpointError, LoraryError
from lorary.hub.jsontext import load_json
from lorary.hub.tables.insertion import check_metrics
from lorary.hub.values import FileEntry

VERSION_NAME = "lorary-version.json"
MAX_BYTES = 10_000_000
_FORMAT = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_NUMBER = 10**6


@dataclass(frozen=True)
class Parent:
    """A version that this one was trained from: its reference where it was pushed from, its digest, and a remote."""

    reference: str
    digest: str | None = None
    remote: str | None = None


@dataclass(frozen=True)
class VersionFile:
    """The content of ``lorary-version.json``; ``files`` are those beside it, without the card, which may be edited."""

    name: str
    number: int
    digest: str
    domain: str
    task: str
    base: str | None
    strategy: str
    created_at: str
    metrics: Mapping[str, Mapping[str, float]]
    tags: tuple[str, ...]
    aliases: tuple[str, ...]
    parents: tuple[Parent, ...]
    files: Mapping[str, FileEntry]
    versions: Mapping[int, str]

    def to_json(self) -> str:
        """Sorted keys, two spaces, a final newline."""
        return json.dumps({"format": _FORMAT, **asdict(self)}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def parse_version_file(content: bytes, source: str) -> VersionFile:
    """Read the file; it comes from strangers. ``source`` names it in errors.

    Raises:
        CheckpointError: it isn't one, or is of a newer format than this version reads.
    """
    where = f"{source}/{VERSION_NAME}"
    try:
        raw = load_json(content)
        if not isinstance(raw, dict) or type(raw.get("format")) is not int:
            raise ValueError("expected an object with an integer 'format'")
        if raw["format"] > _FORMAT:
            raise CheckpointError(f"{where}: format {raw['format']} is newer than this lorary reads; upgrade lorary")
        return _build(raw)
    except CheckpointError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, LoraryError) as error:
        raise CheckpointError(
            f"{where}: not as lorary writes it ({error}); push the version again, or delete the file there"
        ) from error


def _build(raw: Mapping[str, Any]) -> VersionFile:
    versions = {_number(int(number)): _digest(digest) for number, digest in raw["versions"].items()}
    number, digest = _number(raw["number"]), _digest(raw["digest"])
    if versions.get(number) != digest:
        raise ValueError(f"version {number} isn't among its own versions")
    return VersionFile(
        name=_text(raw["name"]),
        number=number,
        digest=digest,
        domain=_text(raw["domain"]),
        task=_text(raw["task"]),
        base=None if raw["base"] is None else _text(raw["base"]),
        strategy=_text(raw["strategy"]),
        created_at=_text(raw["created_at"]),
        metrics=check_metrics(raw["metrics"]),
        tags=_texts(raw["tags"]),
        aliases=_texts(raw["aliases"]),
        parents=tuple(_parent(parent) for parent in raw["parents"]),
        files={
            _text(name): FileEntry(_digest(entry["sha256"]), _size(entry["size"]))
            for name, entry in raw["files"].items()
        },
        versions=versions,
    )


def _parent(raw: Mapping[str, Any]) -> Parent:
    digest, remote = raw.get("digest"), raw.get("remote")
    if remote is not None and "/" not in _text(remote):
        # Without a slash it would read as a version of whoever pulls it.
        raise ValueError(f"expected where a parent is on a remote, found {remote!r:.100}")
    return Parent(
        _text(raw["reference"]),
        None if digest is None else _digest(digest),
        None if remote is None else _text(remote),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 1000 or not value.isprintable():
        raise ValueError(f"expected a short text, found {value!r:.100}")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise ValueError(f"expected a list of texts, found {value!r:.100}")
    return tuple(_text(item) for item in value)


def _digest(value: Any) -> str:
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise ValueError(f"expected a sha256, found {value!r:.100}")
    return value


def _number(value: Any) -> int:
    if type(value) is not int or not 0 < value <= _MAX_NUMBER:
        raise ValueError(f"expected a version's number, found {value!r:.100}")
    return value


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"expected a size in bytes, found {value!r:.100}")
    return value
