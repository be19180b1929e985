"""Where a remote is: a repository on the Hub, or a folder that several machines share."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from lorary.hub.errors import InvalidReferenceError
from lorary.hub.reference import FolderReference, HubReference, parse_reference

SCHEME = "file://"

_NUMBER = re.compile(r"[0-9]{1,6}")  # what is longer may be the beginning of a commit's id
_FORMS = "user/repo[@revision], or file:///a/shared/folder/name[@v3 or @alias]"


@dataclass(frozen=True)
class FolderAddress:
    """A shared folder (``path`` is absolute), or an adapter in it at a revision."""

    path: Path
    revision: str | None = None

    def __str__(self) -> str:
        return folder_url(self.path) + (f"@{self.revision}" if self.revision else "")


Address = HubReference | FolderAddress


def folder_url(path: Path) -> str:
    """A folder as ``file://`` and its absolute path."""
    return SCHEME + quote(str(path))


def parse_address(text: str) -> Address:
    """Read where to push to or pull from; a bare number as the revision means that version, ``v3``.

    Raises:
        InvalidReferenceError: the text names no remote.
    """
    if text.startswith("file:"):
        return _folder(text)
    reference = parse_reference(text)
    if isinstance(reference, HubReference):
        return HubReference(reference.repo, _revision(reference.revision))
    if isinstance(reference, FolderReference):
        raise InvalidReferenceError(
            f"{text!r} is a folder; a shared folder is written {folder_url(reference.path.absolute())}, "
            "and `lorary import` takes a checkpoint out of a folder"
        )
    raise InvalidReferenceError(f"{text!r} names no remote; expected {_FORMS}")


def _folder(text: str) -> FolderAddress:
    parts = urlsplit(text)
    place, at, revision = parts.path.rpartition("@")
    if not at or "/" in revision:
        place, revision = parts.path, ""
    path = unquote(place)
    beside = parts.netloc or parts.query or parts.fragment
    if beside or not path.startswith("/") or not path.isprintable() or ".." in Path(path).parts:
        raise InvalidReferenceError(
            f"{text!r} names no shared folder; expected file:// and an absolute path, as in file:///mnt/team/adapters"
        )
    return FolderAddress(Path(path), _revision(revision or None))


def _revision(text: str | None) -> str | None:
    return f"v{int(text)}" if text and _NUMBER.fullmatch(text) else text
