"""Files that are compressed with gzip."""

from __future__ import annotations

import io
import zlib
from gzip import BadGzipFile, GzipFile
from typing import Any

from lorary.training.data.files.contents import misnamed

MOST_TIMES = 200
"""So many times its own size a file may unpack to; texts do to ten, and no gzip file to more than a thousand."""

ALWAYS = 2**28
"""Bytes that any file may unpack to."""

_MAGIC = b"\x1f\x8b"
_ENOUGH = 8  # bytes that tell one kind of file from another
_AGAIN = "copy or download it again"


class Unpacked(io.RawIOBase):
    """What a gzip file holds, from its beginning to its end. Several members, one after the other, are one content.

    Reading raises BadGzipFile, an OSError, which says what is wrong with the file and how to mend it.

    Args:
        packed: the file, an ``io.BufferedReader``.
        size: its bytes.
    """

    def __init__(self, packed: Any, size: int) -> None:
        begins = packed.peek(_ENOUGH)
        if not begins.startswith(_MAGIC):
            found = misnamed(begins)
            what = f", but {found}" if found else "; take .gz off its name, or compress it"
            raise BadGzipFile(f"it isn't gzip-compressed, as its name says{what}")
        self._content, self._left = GzipFile(fileobj=packed), max(ALWAYS, MOST_TIMES * size)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack the next bytes into ``buffer``; their number, 0 at the end."""
        try:
            count = self._content.readinto(buffer)
        except EOFError as error:
            raise BadGzipFile(f"its gzip data are cut off; {_AGAIN}") from error
        except (BadGzipFile, zlib.error) as error:
            raise BadGzipFile(f"its gzip data are damaged, or something else stands behind them; {_AGAIN}") from error
        self._left -= count
        if self._left < 0:
            what = f"it unpacks to more than {MOST_TIMES} times its size, as no text does"
            raise BadGzipFile(f"{what}; if that is meant, unpack it yourself and name the unpacked file")
        return count
