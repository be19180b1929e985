"""Rows that are longer than the model takes: cut, dropped or refused, and counted either way.

A task's ``encode`` cuts every row to ``max_length`` and says what it cut (:class:`Length`); what becomes of such rows
is decided here, once for all tasks, by ``data.too_long``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from lorary.hub.errors import DataError
from lorary.training.data import Example, Note
from lorary.training.data.files.source import report

if TYPE_CHECKING:
    from lorary.training.tasks.rows.encoded import Encoded

TooLong = Literal["truncate", "drop", "error"]
_PARTS = {"train": "training", "validation": "validation", "test": "held-out"}


@dataclass(frozen=True)
class Length:
    """A row's tokens before and after it was cut; ``learned``: is a token or label that is trained on left?"""

    full: int
    kept: int
    learned: bool = True

    @property
    def cut(self) -> int:
        """How many tokens are lost."""
        return self.full - self.kept


@dataclass(frozen=True)
class Room:
    """How long a row may be, in words, and the settings that say so."""

    most: str
    settings: str


def fit_lengths(
    parts: Mapping[str, Encoded], too_long: TooLong, room: Room, note: Note
) -> tuple[dict[str, Encoded], dict[str, dict[str, int]]]:
    """Deal with the rows that were cut, and count them.

    ``drop`` leaves them out of the training rows only: validation and held-out rows stay, cut, since metrics without
    the hard rows would flatter the adapter. Rows that keep nothing to learn are never trained or validated on: their
    loss is a mean of nothing.

    Args:
        parts: encoded rows by part (``train``, ``validation``, ``test``).
        room: what they were cut to.
        note: is told of rows that were cut or dropped, part by part.

    Returns:
        The parts, and of each the figures for the provenance, in rows and tokens: ``rows`` (before any was dropped),
        ``longest``, ``cut`` (and kept), ``tokens_cut``, ``dropped``, ``nothing_learned``; none of a task that never
        cuts.

    Raises:
        DataError: ``too_long`` is ``error`` and rows are too long, each by its file, number and length; or no row of a
            part is left.
    """
    if too_long == "error":
        _refuse(parts, room)
    fitted, figures = {}, {}
    for part, encoded in parts.items():
        fitted[part] = encoded
        if encoded.lengths:
            fitted[part], figures[part] = _fit(encoded, part, too_long, room, note)
    return fitted, figures


def _refuse(parts: Mapping[str, Encoded], room: Room) -> None:
    problems = [
        f"{example.place}: {length.full} tokens, {length.kept} fit"
        for encoded in parts.values()
        for example, length in _cut(encoded)
    ]
    if problems:
        subject = f"rows of more than {room.most}; raise {room.settings}, or set data.too_long to truncate or drop"
        raise report(subject, problems)


def _cut(encoded: Encoded) -> list[tuple[Example, Length]]:
    pairs = zip(encoded.examples, encoded.lengths, strict=True) if encoded.lengths else ()
    return [(example, length) for example, length in pairs if length.cut]


def _fit(encoded: Encoded, part: str, too_long: TooLong, room: Room, note: Note) -> tuple[Encoded, dict[str, int]]:
    kind, rows, cut = _PARTS[part], len(encoded.lengths), _cut(encoded)
    dropping = too_long == "drop" and part == "train"
    bare = [
        example
        for example, length in zip(encoded.examples, encoded.lengths, strict=True)
        if not length.learned and not (dropping and length.cut)
    ]
    kept = [
        place
        for place, length in enumerate(encoded.lengths)
        if (length.learned or part == "test") and not (dropping and length.cut)
    ]
    fitted = encoded.pick(kept)
    still_cut = _cut(fitted)
    lost = sum(length.cut for _, length in still_cut)
    longest = max(length.full for length in encoded.lengths)
    if not any(length.learned for length in fitted.lengths):
        raise DataError(
            "rows",
            [
                f"no {kind} row has a token to learn within {room.most} (the longest has {longest})"
                + (f"; raise {room.settings}" if cut else "")
            ],
        )
    if long := cut if dropping else still_cut:
        told = f"{len(long)} of {rows} {kind} rows are longer than {room.most} (the longest: {longest})"
        if dropping:
            note(f"{told} and were dropped (data.too_long)")
        else:
            reason = "; only training rows are dropped, or the metrics would flatter" if too_long == "drop" else ""
            note(f"{told} and were cut: {lost} tokens lost ({room.settings}, data.too_long){reason}")
    if bare:
        what = "have nothing to score" if part == "test" else "were dropped: nothing to learn"
        note(f"{len(bare)} of {rows} {kind} rows {what} within {room.most} (first: {bare[0].place})")
    return fitted, {
        "rows": rows,
        "longest": longest,
        "cut": len(still_cut),
        "tokens_cut": lost,
        "dropped": rows - len(kept),
        "nothing_learned": len(bare),
    }
