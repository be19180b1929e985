"""Where what can be made again is kept for the user, beside the Hugging Face libraries' own caches."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path | None:
    """``~/.cache/lorary/NAME``, or below ``XDG_CACHE_HOME``; None for a user who has no home. It may not be there.

    A relative ``XDG_CACHE_HOME`` doesn't count, as its specification has it: it would be whoever's folder one is in.
    """
    place = Path(os.environ.get("XDG_CACHE_HOME", ""))
    try:
        return (place if place.is_absolute() else Path.home() / ".cache") / "lorary" / name
    except RuntimeError:  # no HOME, and a user id that the system has no name for, as in some containers
        return None
