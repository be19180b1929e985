"""Checked rows by role, and where they came from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from lorary.training.data.roles import TARGET_ROLES

Note = Callable[[str], None]


@dataclass(frozen=True)
class Example:
    """A checked row: its values by role (labels and tags as names), and where it came from."""

    values: Mapping[str, Any]
    place: str

    @cached_property
    def digest(self) -> bytes:
        """A hash of all that the row holds: 32 bytes, equal for equal rows wherever they stand.

        Tables within it count with the order of their keys, in which a chat template writes them.
        """
        return _hash(dict(sorted(self.values.items())), ordered=True)

    @property
    def inputs(self) -> bytes:
        """What the model is given, as a hash that is equal for equal inputs: a corpus isn't held twice for it.

        Pairs without a prompt are given whole, since what they begin with is within them.
        """
        given = {role: value for role, value in self.values.items() if role not in TARGET_ROLES}
        return _hash(given or self.values, ordered=False)


def _hash(values: Mapping[str, Any], *, ordered: bool) -> bytes:
    # Parquet also holds what JSON doesn't: a message's timestamp, a decimal number.
    return hashlib.sha256(json.dumps(values, sort_keys=not ordered, default=repr).encode()).digest()


@dataclass(frozen=True)
class Examples:
    """All rows of a run. ``labels`` are names in the order of their ids; None where the task has none.

    ``problem_type`` is text classification's: what the labels are.
    ``held_out``: were the ``test`` rows kept from training? The last run of a cross-validation trains on all rows, and
    then they say nothing about how good it is.
    """

    train: tuple[Example, ...]
    validation: tuple[Example, ...]
    test: tuple[Example, ...]
    labels: tuple[str, ...] | None
    provenance: Mapping[str, Any]
    problem_type: str | None = None
    held_out: bool = True
