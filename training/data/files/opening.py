"""Opening a data file: its content, unpacked, and the hash of the file as it lies there."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from lorary.hub.errors import DataError
from lorary.training.data.files.contents import check_file
from lorary.training.data.files.gzipped import Unpacked
from lorary.training.recipe.data_files import is_gzip

_CHUNK = 2**20


class _Hashed(io.RawIOBase):
    """A file that hashes what is read of it."""

    def __init__(self, file: io.RawIOBase, digest: Any) -> None:
        self._file, self._digest = file, digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer) or 0
        self._digest.update(memoryview(buffer)[:count])
        return count


@contextmanager
def open_content(path: Path, shown: str) -> Iterator[tuple[BinaryIO, Any]]:
    """A file's content, unpacked where the file is compressed, and a sha256 that has seen the file when all is read.

    Raises:
        DataError: as :func:`check_file`.
        OSError: it can't be read, now or in the block, or isn't whole.
    """
    check_file(path, shown)
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        lying = io.BufferedReader(_Hashed(file, digest), _CHUNK)
        if is_gzip(path):
            yield cast(BinaryIO, io.BufferedReader(Unpacked(lying, path.stat().st_size), _CHUNK)), digest
        else:
            yield cast(BinaryIO, lying), digest


def read_content(path: Path, shown: str, most: int = -1) -> tuple[bytes, str]:
    """The whole content of a file, unpacked where it is compressed, and the sha256 of the file as it lies there.

    With ``most``, only so many bytes of it, and the hash of what was read for them.

    Raises:
        DataError: as :func:`check_file`, or the file isn't whole.
    """
    try:
        with open_content(path, shown) as (content, digest):
            return content.read(most), digest.hexdigest()
    except OSError as error:
        raise DataError(shown, [f"can't be read: {error.strerror or error}"]) from error
