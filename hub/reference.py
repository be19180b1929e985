"""References: how a user names an adapter.

``name``, ``name@3``, ``name@prod`` in the registry; ``user/repo``, ``user/repo@revision`` or ``hf://user/repo@revision``
on the Hub; a folder begins with ``./``, ``../``, ``/`` or ``~``, so that neither names nor files shadow each other.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from lorary.hub.errors import InvalidReferenceError

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?")
_LONGEST = 96  # signs of a name, an alias, a domain or a tag
_SHOWN = 100  # signs of what was given in an error
_MAX_DIGITS = 18  # of a version number, so that it fits SQLite's integers
_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
_FORMS = (
    "name, name@3, name@alias, user/repo[@revision], hf://user/repo[@revision], "
    "or a folder beginning with ./ ../ / or ~"
)


@dataclass(frozen=True)
class RegistryReference:
    """A version in the registry: by number, by alias, or the latest when both are None."""

    name: str
    number: int | None = None
    alias: str | None = None

    def __str__(self) -> str:
        suffix = self.number if self.number is not None else self.alias
        return self.name if suffix is None else f"{self.name}@{suffix}"


@dataclass(frozen=True)
class HubReference:
    """A repository on the Hub, at a branch, tag or commit."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"


@dataclass(frozen=True)
class FolderReference:
    """A folder that holds a checkpoint."""

    path: Path

    def __str__(self) -> str:
        # Without the dot a relative path would read back as a name in the registry.
        plain = not self.path.is_absolute() and self.path.parts[:1] != ("..",)
        return f"./{self.path}" if plain else str(self.path)


Reference = RegistryReference | HubReference | FolderReference


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        InvalidReferenceError: the text has none of the forms.
    """
    if not isinstance(text, str):
        raise InvalidReferenceError(f"{_quoted(text)} isn't a reference; expected one of: {_FORMS}")
    if text.startswith(("./", "../", "/", "~")) or text in (".", ".."):
        try:
            return FolderReference(Path(text).expanduser())
        except RuntimeError as error:
            raise InvalidReferenceError(f"{_quoted(text)}: no such user's home folder is known") from error
    body, at, suffix = text.removeprefix("hf://").partition("@")
    if at and not suffix:
        raise InvalidReferenceError(f"{_quoted(text)}: nothing follows the @; expected one of: {_FORMS}")
    if text.startswith("hf://") or "/" in body:
        if not _REPO.fullmatch(body) or ".." in suffix:
            raise InvalidReferenceError(f"{_quoted(text)} isn't a reference; expected one of: {_FORMS}")
        return HubReference(body, suffix or None)
    if not _NAME.fullmatch(body):
        raise InvalidReferenceError(f"{_quoted(text)} isn't a reference; expected one of: {_FORMS}")
    if suffix.isascii() and suffix.isdecimal() and len(suffix) <= _MAX_DIGITS:
        return RegistryReference(body, number=int(suffix))
    if suffix and (suffix.isdecimal() or not _NAME.fullmatch(suffix)):
        raise InvalidReferenceError(f"{_quoted(text)}: {_quoted(suffix)} is neither a version number nor an alias")
    return RegistryReference(body, alias=suffix or None)


def check_name(text: str, what: str = "name") -> str:
    """Return ``text`` if it can stand in a reference as a name or an alias.

    Raises:
        InvalidReferenceError: it can't; the message says what can.
    """
    if not isinstance(text, str) or not _NAME.fullmatch(text) or (what == "alias" and text.isdecimal()):
        raise InvalidReferenceError(
            f"{_quoted(text)} can't be {'an' if what == 'alias' else 'a'} {what}: use lower-case letters, digits, "
            f"'.', '_' and '-', at most 96 characters{', and not a number alone' if what == 'alias' else ''}"
        )
    return text


def normalise_domain(text: str, what: str = "domain") -> str:
    """A domain (or a tag) in its one spelling, lower-case kebab: ``Legal Cases`` becomes ``legal-cases``.

    Raises:
        InvalidReferenceError: nothing is left, or more than 96 signs.
    """
    kebab = ""
    for sign in unicodedata.normalize("NFC", text.lower()):  # some systems write é as one sign, some as two
        in_word = kebab[-1:] not in ("", "-")
        # In many scripts a vowel is a mark on a letter, and without it that is another word.
        if sign.isalnum() or (in_word and unicodedata.category(sign)[0] == "M"):
            kebab += sign
        elif in_word:
            kebab += "-"
    kebab = kebab.rstrip("-")
    if not 0 < len(kebab) <= _LONGEST:
        raise InvalidReferenceError(
            f"{_quoted(text)} can't be a {what}: expected a word such as 'legal', at most {_LONGEST} characters"
        )
    return kebab


def _quoted(text: object) -> str:
    if not isinstance(text, str):
        return f"{text!r:.{_SHOWN}}"
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}... ({len(text):,} characters)"
