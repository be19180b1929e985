"""From a reference to the version it names, or to an error that says what there is."""

from __future__ import annotations

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.catalogue import select
from lorary.hub.errors import InvalidReferenceError, UnknownReferenceError
from lorary.hub.reference import FolderReference, RegistryReference, parse_reference
from lorary.hub.values import Version

if TYPE_CHECKING:
    from sqlite_utils import Database

_SHOWN = 8  # numbers listed one by one before only their range is told


def registry_reference(text: str) -> RegistryReference:
    """Read a reference that can only mean the registry.

    Raises:
        InvalidReferenceError: it isn't one, or it means a folder or the Hub.
    """
    reference = parse_reference(text)
    if not isinstance(reference, RegistryReference):
        kind = "a folder" if isinstance(reference, FolderReference) else "a repository on the Hub"
        raise InvalidReferenceError(
            f"{text!r} means {kind}; expected a name in the registry: name, name@3 or name@alias"
        )
    return reference


def locate(db: Database | None, text: str, path: Path) -> tuple[int, Version]:
    """The row id and the version that a reference names; ``db`` is None where no registry is at ``path`` yet.

    Raises:
        InvalidReferenceError: see :func:`registry_reference`.
        UnknownReferenceError: nothing has that name, number or alias.
    """
    reference = registry_reference(text)
    if db is None:
        raise UnknownReferenceError(
            f"{text!r}: there is no registry at {path} yet; `lorary import` or a training makes it"
        )
    versions = select(db, "a.name = ?", [reference.name])
    if not versions:
        raise UnknownReferenceError(_no_such_name(db, reference.name, path))
    if reference.number is None and reference.alias is None:
        return list(versions.items())[-1]
    for row_id, version in versions.items():
        if version.number == reference.number or reference.alias in version.aliases:
            return row_id, version
    wanted = f"version {reference.number}" if reference.alias is None else f"alias {reference.alias!r}"
    raise UnknownReferenceError(f"{reference.name!r} has no {wanted}; it has {_holdings(versions.values())}")


def _no_such_name(db: Database, name: str, path: Path) -> str:
    names = [
        str(row["name"])
        for row in db.query("SELECT DISTINCT a.name FROM adapters a JOIN versions v ON v.adapter_id = a.id ORDER BY 1")
    ]
    if not names:
        return f"no adapter named {name!r}: the registry {path} is empty"
    near = get_close_matches(name, names, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else "`lorary list` shows what there is"
    return f"no adapter named {name!r} in {path}; {hint}"


def _holdings(versions: Collection[Version]) -> str:
    numbers = sorted(version.number for version in versions)
    few = ", ".join(map(str, numbers))
    told = few if len(numbers) <= _SHOWN else f"{len(numbers)} from {numbers[0]} to {numbers[-1]}"
    aliases = sorted(alias for version in versions for alias in version.aliases)
    label = "version" if len(numbers) == 1 else "versions"
    return f"{label} {told}, {'alias' if len(aliases) == 1 else 'aliases'} {', '.join(aliases) or 'none'}"
