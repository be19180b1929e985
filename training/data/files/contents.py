"""What is in a data file, before its rows are read: is it a file at all, and is it of the kind that its name says?"""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorary.hub.errors import DataError

Rows = Iterator[tuple[int, dict[str, Any]]]
"""A file's rows, each with its number for messages: that of its line, where lines are rows."""


@dataclass(frozen=True)
class Manner:
    """What a recipe says of how its rows are read, since the files don't.

    ``header`` names the columns of a file that doesn't, ``separator`` stands between its cells. ``split`` is that of a
    dataset, or the key of the rows in a JSON object that holds several lists of them.
    """

    header: tuple[str, ...] | None = None
    separator: str | None = None
    encoding: str = "utf-8"
    split: str = "train"


_KINDS = {
    stat.S_IFIFO: "a pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}

_UTF_16 = "UTF-16"

_BEGINNINGS: Mapping[bytes, str] = {
    b"\x1f\x8b": "gzip-compressed; end its name in .gz, or unpack it",
    b"PK\x03\x04": "a zip archive; unpack it",
    b"BZh91AY&SY": "bzip2-compressed; unpack it, or compress it with gzip (.gz)",
    b"\xfd7zXZ\x00": "xz-compressed; unpack it, or compress it with gzip (.gz)",
    b"\x28\xb5\x2f\xfd": "zstd-compressed; unpack it, or compress it with gzip (.gz)",
    b"PAR1\x15": "a Parquet file; name it .parquet",
    b"\x80\x02": "a pickle, which is never read; save its rows as JSONL",
    b"\x80\x03": "a pickle, which is never read; save its rows as JSONL",
    b"\x80\x04": "a pickle, which is never read; save its rows as JSONL",
    b"\x80\x05": "a pickle, which is never read; save its rows as JSONL",
    b"\xff\xfe": f"{_UTF_16} text; save it as UTF-8, or set data.encoding: utf-16",
    b"\xfe\xff": f"{_UTF_16} text; save it as UTF-8, or set data.encoding: utf-16",
}
"""How files begin that are often named as if they were text. No UTF-8 text that can be meant begins so."""


def check_file(path: Path, shown: str) -> None:
    """Raise where ``path`` isn't a file: reading a pipe or a device may never end.

    Raises:
        DataError: what it is instead, or why it can't be read.
    """
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise DataError(shown, [f"can't be read: {error.strerror or error}"]) from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no file")
        raise DataError(shown, [f"is {kind}, expected a file; save the rows to a file and name that"])


def misnamed(content: bytes) -> str | None:
    """What a file is that should be text, told by how it begins; None where it may be text."""
    return next((kind for beginning, kind in _BEGINNINGS.items() if content.startswith(beginning)), None)


def decode(content: bytes, problems: list[str], encoding: str = "utf-8") -> str:
    """The text of a file, without a byte order mark; what isn't text goes to ``problems``, by its line."""
    said = encoding.upper()
    if (kind := misnamed(content)) and not (_UTF_16 in kind and said.startswith(_UTF_16)):
        problems.append(f"row 1: not {said} text but {kind}")
        return ""
    try:
        text = content.decode(encoding).removeprefix("\ufeff")
    except UnicodeError as error:
        line = content[: getattr(error, "start", 0)].count(b"\n") + 1
        problems.append(f"row {line}: {not_text(error, encoding)}")
        return ""
    if (place := text.find("\0")) >= 0:
        line = text.count("\n", 0, place) + 1
        problems.append(f"row {line}: holds a NUL byte, so it isn't {said} text; save the file as UTF-8")
        return ""
    return text


def not_text(error: UnicodeError, encoding: str, before: int = 0) -> str:
    """What is wrong with a byte, and how that is mended; ``before``: so many bytes stand before those decoded."""
    byte = f" (byte {before + error.start})" if isinstance(error, UnicodeDecodeError) else ""
    return f"not {encoding.upper()} text{byte}; save the file as UTF-8, or set data.encoding (such as latin-1)"


def twice(columns: Sequence[str]) -> str:
    """The names that stand more than once, for a message."""
    return ", ".join(repr(name) for name, count in sorted(Counter(columns).items()) if count > 1)
