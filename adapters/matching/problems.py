"""What is wrong with a checkpoint's keys, gathered so that one error tells all."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from lorary.hub.errors import KeyMismatchError

_SHOWN = 5


class Shaped(Protocol):
    """A tensor, or what a file's header says of one."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""


@dataclass
class KeyProblems:
    """The keys that are missing, unexpected or of another shape; ``hint`` says what may be behind it."""

    source: str
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshapen: list[str] = field(default_factory=list)
    hint: str = "Was it trained on another architecture, or were its keys renamed?"

    def check_shape(self, key: str, wanted: tuple[int, ...], info: Shaped) -> None:
        """Note a tensor that hasn't the shape that the backbone needs."""
        if info.shape != wanted:
            self.misshapen.append(f"{key} is {list(info.shape)}, the backbone needs {list(wanted)}")

    def raise_if_any(self) -> None:
        """Raise KeyMismatchError if anything was noted; it names the first few of each kind."""
        lists: list[tuple[str, list[Any]]] = [
            ("missing", self.missing),
            ("unexpected", self.unexpected),
            ("of another shape", self.misshapen),
        ]
        parts = []
        for label, items in lists:
            if items:
                more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
                parts.append(f"{label}: {'; '.join(items[:_SHOWN])}{more}")
        if parts:
            raise KeyMismatchError(
                f"{self.source}: its tensors don't fit this backbone. {'. '.join(parts)}. {self.hint}"
            )
