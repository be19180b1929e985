"""What must not leave the machine with an adapter: secrets, logins, and the folders of whoever trained it.

The one place where such things are taken out of what is written into a version's files. A path keeps its last part.
Patterns of secrets as their issuers document them (Hugging Face, OpenAI, GitHub, GitLab, AWS, Google, Slack, JWT).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

REMOVED = "[removed]"
"""What stands where a secret was."""

# What is searched comes from strangers too, so what may repeat before a fixed part has a limit: without one, a text of
# nothing but beginnings takes the square of its length.
_SECRET = re.compile(
    # Not inside a word: "task-classification" holds "sk-", and a key has digits.
    r"(?<![A-Za-z0-9])(?:hf_[A-Za-z0-9]{20,}|sk-(?=[\w-]{0,60}\d)[\w-]{20,}|gh[oprsu]_[A-Za-z0-9]{20,}|github_pat_\w{20,}"
    r"|glpat-[\w-]{16,}|A[KS]IA[0-9A-Z]{16}|AIza[\w-]{30,}|xox[abeoprs]-[\w-]{10,}"
    r"|eyJ[\w-]{8,500}\.[\w-]{8,5000}\.[\w-]+)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"
)
_BEARER = re.compile(r"\b(bearer|basic)\s+[\w.~+/-]{16,}=*", re.IGNORECASE)
_LOGIN = re.compile(r"(\b[a-z][\w+.-]{0,30}://)[^/\s\"'@]+@", re.IGNORECASE)
_QUERY = re.compile(
    r"([?&](?:[\w-]{0,60}token|api[_-]?key|key|sig|signature|secret|password|X-Amz-[\w-]+)=)[^&#\s\"']+", re.IGNORECASE
)
# Special tokens have names such as eos_token, so a bare `token` says nothing.
_SECRET_NAME = (
    r"(?:[\w-]{0,30}[_-])?(?:api[_-]?key|password|passwd|secret(?:[_-](?:access[_-])?key)?|credentials?"
    r"|(?:access|auth|use[_-]auth|hf|hub|wandb|bearer)[_-]?token)"
)
_NAMED = re.compile(rf"(?i)\b({_SECRET_NAME})([\"']?\s*[:=]\s*[\"']?)(?!\[removed\])[^\s\"',;}}]+")
_SECRET_KEY = re.compile(_SECRET_NAME, re.IGNORECASE)
_TILDE = re.compile(r"~[\w.-]*(?:[\\/]|$)")
_CACHED = re.compile(r"(?:^|[\\/])models--([\w.-]+?)--([\w.-]+)[\\/]snapshots[\\/][^\\/]+[\\/]?$")


def redact(value: Any) -> Any:
    """JSON values without secrets and home folders; whatever else they hold is left as it is."""
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, Mapping):
        return {
            redact_text(key) if isinstance(key, str) else key: (
                REMOVED
                if isinstance(key, str) and isinstance(item, str) and item and _SECRET_KEY.fullmatch(key)
                else redact(item)
            )
            for key, item in value.items()
        }
    return [redact(item) for item in value] if isinstance(value, (list, tuple)) else value


def redact_text(text: str) -> str:
    """A text without secrets; of paths into somebody's home folder only the last part is left."""
    if "/" in text or "\\" in text:
        text = _LOGIN.sub(r"\1", text)
        text = _QUERY.sub(rf"\1{REMOVED}", text)
        homes = _homes()
        text = homes.quoted.sub(lambda found: found[1] + last_part(found[2]) + found[1], text)
        text = homes.inside.sub(lambda found: last_part(found[0]), text)
    text = _SECRET.sub(REMOVED, text)
    text = _BEARER.sub(rf"\1 {REMOVED}", text)
    return _NAMED.sub(rf"\1\2{REMOVED}", text)


def last_part(path: str) -> str:
    """A path's last part; of a home folder itself, ``~``."""
    return "~" if _homes().alone.fullmatch(path.rstrip("/\\")) else PureWindowsPath(path).name or path


def bare_name(text: str) -> str:
    """A setting that may be a path: one from the root, or from a home folder, keeps its last part."""
    if is_absolute(text):
        return redact_text(last_part(text))
    return redact_text(text)


def is_absolute(text: str) -> bool:
    """A path from a root or a home folder, of whatever system."""
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute() or bool(_TILDE.match(text))


def public_base(text: str) -> str:
    """A base's id for others: a path in the Hugging Face cache is the id it stands for, others keep their last part."""
    if cached := _CACHED.search(text):
        return f"{cached[1]}/{cached[2]}"
    return bare_name(text)


def local_folder(path: str | Path) -> Path | None:
    """The folder that a text names on this machine; None where it can't be one: empty, too long, in an unknown home."""
    if not str(path):  # to pathlib it is the current folder
        return None
    try:
        folder = Path(path).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def own_folder(path: str | Path | None) -> str | None:
    """A folder of this machine as its catalogue keeps it: with ``~`` for the home folder; None if it isn't there.

    None too where its path isn't Unicode, as a text in the catalogue has to be.
    """
    folder = local_folder(path) if path is not None else None
    if folder is None:
        return None
    folder, home = folder.absolute(), _home()
    try:
        str(folder).encode()
    except UnicodeEncodeError:
        return None
    if home is None:
        return str(folder)
    if folder == home:
        return "~"
    return f"~/{folder.relative_to(home).as_posix()}" if folder.is_relative_to(home) else str(folder)


def _home() -> Path | None:
    """The user's home folder; None for one who has none, whose home folder is the root in some containers."""
    try:
        home = Path.home()
    except RuntimeError:  # no HOME, and a user id that the system has no name for
        return None
    return home if home.name else None


_PART = r"[^\\/\s\"'`<>|:;,()\[\]{}]+"


@dataclass(frozen=True)
class _Homes:
    """Paths into home folders: within a text, as a quoted whole (which may hold blanks), and a home folder alone."""

    inside: re.Pattern[str]
    quoted: re.Pattern[str]
    alone: re.Pattern[str]


@cache
def _homes_with(own: str) -> _Homes:
    first = f"{re.escape(own)}|" if own else ""
    home = rf"(?<![\w.])(?:{first}/(?:home|Users)/{_PART}|/root|[A-Za-z]:[\\/]+Users[\\/]+{_PART})"
    return _Homes(
        inside=re.compile(rf"(?:{home}|(?<![\w.~])~(?=[\\/]\w))(?:[\\/]+{_PART})*[\\/]?(?![\w-])"),
        quoted=re.compile(rf"([\"'])({home}(?:[\\/][^\"'\n]*)?)\1"),
        alone=re.compile(rf"{home}|~"),
    )


def _homes() -> _Homes:
    return _homes_with(str(_home() or ""))
