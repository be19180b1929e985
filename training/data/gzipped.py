"""Files that are compressed with gzip."""

from __future__ import annotations

import io
import zlib
from gzip import BadGzipFile
from typing import Any, BinaryIO

from lorary.training.data.contents import misnamed

MOST_TIMES = 200
"""So many times its own size a file may unpack to; texts do to ten, and no gzip file to more than a thousand."""

ALWAYS = 2**28
"""Bytes that any file may unpack to."""

_MAGIC = b"\x1f\x8b"
_CHUNK = 2**18
_AGAIN = "copy or download it again"


class Unpacked(io.RawIOBase):
    """What a gzip file holds, from its beginning to its end. Several members, one after the other, are one content.

    Reading raises BadGzipFile, an OSError, which says what is wrong with the file and how to mend it.

    Args:
        packed: the file.
        size: its bytes.
    """

    def __init__(self, packed: BinaryIO, size: int) -> None:
        self._packed, self._left = packed, max(ALWAYS, MOST_TIMES * size)
        self._data = packed.read(_CHUNK)  # read, and not unpacked yet
        self._member = _member()
        if not self._data.startswith(_MAGIC):
            found = misnamed(self._data)
            what = f", but {found}" if found else "; take .gz off its name, or compress it"
            raise BadGzipFile(f"it isn't gzip-compressed, as its name says{what}")

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Unpack the next bytes into ``buffer``; their number, 0 at the end."""
        while not self._member.eof or self._begins_anew():
            self._data = self._data or self._packed.read(_CHUNK)
            if not self._data:
                raise BadGzipFile(f"its gzip data are cut off; {_AGAIN}")
            try:
                found = self._member.decompress(self._data, len(buffer))
            except zlib.error as error:
                raise BadGzipFile(f"its gzip data are damaged ({str(error).rpartition(': ')[2]}); {_AGAIN}") from error
            self._data = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if found:
                self._left -= len(found)
                if self._left < 0:
                    what = f"it unpacks to more than {MOST_TIMES} times its size, as no text does"
                    raise BadGzipFile(f"{what}; if that is meant, unpack it yourself and name the unpacked file")
                buffer[: len(found)] = found
                return len(found)
        return 0

    def _begins_anew(self) -> bool:
        """Does another member begin behind the last one? Zeros between them fill up what was on a tape."""
        self._data = self._data.lstrip(b"\0")
        while len(self._data) < len(_MAGIC) and (more := self._packed.read(_CHUNK)):
            self._data = (self._data + more).lstrip(b"\0")
        if self._data and not self._data.startswith(_MAGIC):
            raise BadGzipFile(f"something else stands behind its gzip data; {_AGAIN}")
        self._member = _member() if self._data else self._member
        return bool(self._data)


def _member() -> Any:
    return zlib.decompressobj(zlib.MAX_WBITS | 16)  # with gzip's header and sums
