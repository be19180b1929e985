"""What became of each thing that an import came upon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

State = Literal["taken", "there already", "passed over", "refused"]


@dataclass(frozen=True)
class Outcome:
    """``source`` is what was come upon, ``reference`` the version that it is now; ``note`` says why, or what of it."""

    source: str
    state: State
    reference: str | None = None
    note: str = ""


Watch = Callable[[str, int, int], None]
"""Told of each thing before it is taken: what it is, how many were done before it, and how many there are in all."""


def unwatched(what: str, done: int, total: int) -> None:
    """For those who don't wait for it."""
