"""Numbers for people, and the sizes that people write."""

from __future__ import annotations

import re

_UNITS = ("B", "kB", "MB", "GB", "TB")
_SIZE = re.compile(r"\s*(\d{1,18}(?:\.\d+)?)\s*(?:([KMGT])(I?))?B?\s*", re.IGNORECASE)


def size(count: int) -> str:
    """A number of bytes: 512 B, 1.5 MB."""
    power = min((len(str(count)) - 1) // 3, len(_UNITS) - 1)
    return f"{count / 1000**power:.3g} {_UNITS[power]}"


def parse_size(text: str) -> int | None:
    """A number of bytes from ``"7"``, ``"512MB"`` (powers of ten) or ``"2GiB"`` (of two); None where it is no size."""
    match = _SIZE.fullmatch(text)
    if match is None:
        return None
    return int(float(match[1]) * (1024 if match[3] else 1000) ** "_KMGT".index((match[2] or "_").upper()))


def short_number(value: float) -> str:
    """A metric's value."""
    return f"{value:.4g}"


def duration(seconds: float | None) -> str:
    """A span of time: 40 s, 12 min, 3.5 h; None is unknown."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory(peak: int | None, predicted: int | None) -> str | None:
    """What a run took, and what had been predicted: both in bytes, None where it isn't known."""
    if peak is None:
        return None
    return f"{size(peak)}{f' ({size(predicted)} predicted)' if predicted is not None else ''}"
