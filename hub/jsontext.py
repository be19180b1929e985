"""JSON that comes from outside, read strictly: one reading of each text, and nothing in it that breaks later steps."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

MAX_DEPTH = 64
# No setting needs more, no float holds 10**400, and Python refuses to read some thousand digits. A column of SQLite
# holds 19: what goes into one is checked by whoever reads it.
_MAX_DIGITS = 30


def load_json(text: str | bytes) -> Any:
    """Parse ``text`` (UTF-8 when bytes).

    Refused besides what isn't JSON: keys that occur twice (readers disagree on which one counts), NaN and Infinity,
    numbers that only fit as those (1e400), whole numbers of more than 30 digits, more than :data:`MAX_DEPTH` levels,
    and lone surrogates, which can't be hashed, stored or printed.

    Raises:
        ValueError: the text isn't acceptable; the message says why.
    """
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        value = json.loads(
            text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite, parse_int=_whole
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None
    _check([value], MAX_DEPTH)
    return value


def _unique(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        (twice, _), *_ = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} isn't a JSON number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"the number {text[:20]} is too large")
    return value


def _whole(text: str) -> int:
    digits = len(text.removeprefix("-"))
    if digits > _MAX_DIGITS:
        raise ValueError(f"the number {text[:20]}... has {digits} digits")
    return int(text)


def _check(values: Iterable[Any], depth: int) -> None:
    for value in values:
        kind = type(value)
        if kind is str:
            if not value.isascii():
                value.encode("utf-8")  # raises UnicodeEncodeError, a ValueError, for a lone surrogate
        elif kind is list or kind is dict:
            if depth == 0:
                raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
            _check(value, depth - 1)  # of an object, the keys
            if kind is dict:
                _check(value.values(), depth - 1)
