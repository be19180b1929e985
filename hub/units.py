"""Numbers for people."""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB", "TB")


def size(count: int) -> str:
    """A number of bytes: 512 B, 1.5 MB."""
    power = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def short_number(value: float) -> str:
    """A metric's value."""
    return f"{value:.4g}"


def memory(peak: int | None, predicted: int | None) -> str | None:
    """What a run took, and what had been predicted: both in bytes, None where it isn't known."""
    if peak is None:
        return None
    return f"{size(peak)}{f' ({size(predicted)} predicted)' if predicted is not None else ''}"
