"""Which file is the registry, and how a command that a message suggests names it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from lorary.hub.errors import RegistryError

_VARIABLE = "LORARY_REGISTRY"


def registry_path(given: str | Path | None = None) -> Path:
    """The absolute path of the registry that is meant: by default what ``LORARY_REGISTRY`` names, else ``registry.db``.

    Raises:
        RegistryError: it is in the home folder of a user who isn't known.
    """
    chosen = given if given is not None else os.environ.get(_VARIABLE) or "registry.db"
    try:
        return Path(chosen).expanduser().absolute()
    except RuntimeError as error:
        raise RegistryError(f"{chosen}: no such user's home folder is known; name another path") from error


def suggested(command: str, registry: Path) -> str:
    """A command to be pasted into a shell in this folder, with ``--registry`` where it would mean another without.

    Args:
        command: as the shell reads it, quoted where need be.
        registry: the absolute path of the one that it is about.
    """
    try:
        if registry == registry_path():
            return command
        here = Path.cwd()
    except (RegistryError, OSError):  # nothing is meant without, or this folder is gone
        here = registry
    near = str(registry.relative_to(here)) if here in registry.parents else str(registry)
    # At the beginning, a command would take a - for an option, and a ~ for a home folder.
    return f"{command} --registry {shlex.quote(str(registry) if near.startswith(('-', '~')) else near)}"
