"""Texts that end before one of the caller's stop strings, as OpenAI's answers do.

They are looked for in the text itself, so that any tokenizer will do; transformers' own criterion doesn't take all.
"""

from __future__ import annotations

from collections.abc import Sequence


class StopText:
    """Hands a text's pieces on, up to the first stop string, which it leaves out.

    Args:
        stops: the strings, none of them empty.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self.ended = False
        self._held = ""

    def add(self, piece: str) -> str:
        """What of the text may be handed on: what can't be the beginning of a stop string."""
        if self.ended:
            return ""
        self._held += piece
        found = [(place + len(stop), place) for stop in self._stops if (place := self._held.find(stop)) >= 0]
        if found:
            self.ended = True
            _, begin = min(found)  # of those within one another too, the one that a text in smaller pieces ends with
            text, self._held = self._held[:begin], ""
            return text
        keep = max((self._overlap(stop) for stop in self._stops), default=0)
        text, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return text

    def rest(self) -> str:
        """What was held back, at the end of a text in which no stop string has come."""
        text, self._held = self._held, ""
        return text

    def _overlap(self, stop: str) -> int:
        """How many signs at the end of what is held may be the beginning of a stop string."""
        longest = min(len(stop) - 1, len(self._held))
        return next((size for size in range(longest, 0, -1) if stop.startswith(self._held[-size:])), 0)
