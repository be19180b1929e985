"""What callers hand in, read at the door: a wrong type is an error of the call, before anything is looked up or run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from lorary.hub.errors import UsageError

_SHOWN = 80  # signs of a value in an error


def shown(value: object) -> str:
    """A value as an error quotes it."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def is_whole(value: object) -> bool:
    """Is it a whole number? numpy's are; True and False aren't."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Is it a number? numpy's are; NaN, True and False aren't, nor what is too large for a float."""
    try:
        return type(value) is not bool and isinstance(value, Real) and not math.isnan(value)
    except OverflowError:
        return False


def whole_number(name: str, value: Any, least: int = 1, most: int | None = None) -> int:
    """A parameter that counts something.

    Raises:
        UsageError: it isn't a whole number within these limits.
    """
    if not is_whole(value) or value < least or (most is not None and value > most):
        limits = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise UsageError(f"{name}={shown(value)}: expected a whole number {limits}")
    return int(value)


def listed(values: Any, expected: str) -> list[Any]:
    """The items of any list, column or generator, in order; ``expected`` says what they are to be.

    Raises:
        UsageError: it has none, in no order, or is a table, of which Python gives the columns' names.
    """
    unordered = isinstance(values, (str, bytes, Mapping, AbstractSet)) or getattr(values, "ndim", 1) != 1
    if unordered or not isinstance(values, Iterable):
        raise UsageError(f"expected {expected}, found {type(values).__name__}: {shown(values)}")
    return list(values)


def adapter_name(name: Any) -> str:
    """The name of one adapter.

    Raises:
        UsageError: it isn't a text.
    """
    if not isinstance(name, str):
        raise UsageError(f"expected the name of a loaded adapter, found {type(name).__name__}: {shown(name)}")
    return name


def adapter_names(adapter: Any, rows: int | None = None) -> list[str | None]:
    """A name for each of ``rows`` (where that is known), from one for all or one for each; None: the bare backbone.

    Raises:
        UsageError: they aren't names, or not as many as rows.
    """
    if adapter is None or isinstance(adapter, str):
        return [adapter] * (1 if rows is None else rows)
    names = listed(adapter, "an adapter's name, None, or a list with one of them for each row")
    if rows is not None and len(names) != rows:
        raise UsageError(f"{len(names)} adapters for {rows} rows: expected one for each row, or one for all")
    if not names:
        raise UsageError("no adapters: expected a name or None for each row, or one for all")
    return [None if name is None else adapter_name(name) for name in names]


def read_rows(inputs: Any, expected: str) -> tuple[list[Any], bool]:
    """The rows of a call, and whether a single one was given (a text, or a mapping) rather than a list of them.

    Raises:
        UsageError: neither was, or a text that no tokenizer takes.
    """
    single = isinstance(inputs, (str, Mapping))
    rows = [inputs] if single else listed(inputs, expected)
    for row in rows:
        demand_unicode(row)
    return rows, single


def demand_unicode(row: Any) -> None:
    """Refuse a text with half of a surrogate pair in it, as cutting UTF-16 or reading with surrogateescape leaves it.

    Raises:
        UsageError: a row, or a text anywhere in it, has one.
    """
    if isinstance(row, str):
        try:
            row.encode()
        except UnicodeEncodeError as error:
            raise UsageError(
                f"a text has the lone surrogate {row[error.start]!a} at sign {error.start}, which is no Unicode text; "
                "read it in its own encoding, or replace it: text.encode('utf-8', 'replace').decode()"
            ) from error
    elif isinstance(row, (Mapping, list, tuple)):
        for part in (*row.keys(), *row.values()) if isinstance(row, Mapping) else row:
            demand_unicode(part)


def token_rows(rows: Any, vocabulary: int) -> list[list[int]]:
    """Rows of token ids below ``vocabulary``, none of them empty.

    Raises:
        UsageError: they aren't.
    """
    expected = f"rows of token ids, each a list of whole numbers from 0 to {vocabulary - 1}"
    found = [listed(row, expected) for row in listed(_plain(rows), expected)]
    for row in found:
        if not row:
            raise UsageError(f"an empty row: expected {expected}")
        for token in row:
            if not is_whole(token) or not 0 <= token < vocabulary:
                raise UsageError(f"the token {shown(token)}: expected {expected}")
    return [[int(token) for token in row] for row in found]


def demand_known(largest: int, vocabulary: int) -> None:
    """Refuse a text whose ``largest`` token isn't below ``vocabulary``: on a GPU it would end all that runs there.

    Raises:
        UsageError: it isn't.
    """
    if largest >= vocabulary:
        raise UsageError(
            f"the tokenizer gives token {largest}, but the model has {vocabulary}; they don't belong together"
        )


def _plain(values: Any) -> Any:
    """An array or a tensor, or what is listed, as plain lists and numbers."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    return [_plain(value) for value in plain] if isinstance(plain, (list, tuple)) else plain


def folder_path(folder: Any) -> Path:
    """A folder of the caller's.

    Raises:
        UsageError: it isn't a path.
    """
    if not isinstance(folder, (str, Path)):
        raise UsageError(f"expected a folder's path, found {type(folder).__name__}: {shown(folder)}")
    return Path(folder).expanduser().absolute()
