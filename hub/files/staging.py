"""Copies on their way into the store: in a folder of their own, which tells whether somebody still works in it.

The folder holds a lock file, locked for as long as its process lives; the kernel unlocks it whatever that process dies
of. So :func:`abandoned` never takes a copy from a running command, and never waits for one that was killed.
"""

from __future__ import annotations

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lorary.hub.errors import CheckpointError
from lorary.hub.values import FileEntry

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOCK = "lock"
_OFTEN = 1000  # times that a folder was gone again, after which it isn't other processes that tidy it away
_DAY = 86400.0  # seconds after which a copy without a lock counts as given up


class Staging:
    """Copies of files that aren't in the store yet; ``copy`` is the store's way of copying a file."""

    def __init__(self, folder: Path, copy: Callable[[Path, Path], FileEntry]) -> None:
        self._folder, self._copy = folder, copy
        self.files: dict[str, Path] = {}

    def put(self, source: Path) -> FileEntry:
        """Copy a file. When this returns, the copy is complete and on the disk, at ``files[sha256]``.

        Raises:
            CheckpointError: the source can't be read.
            RegistryError: the copy can't be written, or the disk is full.
        """
        target = self._folder / secrets.token_hex(8)
        entry = self._copy(source, target)
        self.files[entry.sha256] = target
        return entry

    def put_folder(self, source: Path, files: Mapping[str, FileEntry]) -> Path:
        """Copy a folder's ``files`` under their names; the copy's folder.

        Raises:
            CheckpointError: a file can't be read, or isn't what it was when it was hashed.
            RegistryError: the copy can't be written, or the disk is full.
        """
        target = self._folder / secrets.token_hex(8)
        for name, entry in files.items():
            if self._copy(source / name, target / name) != entry:
                raise CheckpointError(f"{source / name}: changed while it was copied; try again")
        return target


@contextmanager
def staging_folder(incoming: Path) -> Iterator[Path]:
    """A new folder in ``incoming`` that counts as in use until the block ends; then it and what it holds are gone."""
    folder, lock = _claim(incoming)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            lock.close()
        for empty in (incoming, incoming.parent):  # a store that nothing came into leaves no trace
            with suppress(OSError):
                empty.rmdir()


def _claim(incoming: Path) -> tuple[Path, BinaryIO | None]:
    tidied = 0
    while True:
        folder = incoming / secrets.token_hex(16)
        try:
            incoming.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            lock = (folder / _LOCK).open("wb")
        except FileNotFoundError:
            tidied += 1  # another process has just tidied an empty folder away
            if tidied == _OFTEN:
                raise
            continue
        if fcntl is None or not _locked(lock, wait=True):
            return folder, lock
        try:
            if os.path.samestat((folder / _LOCK).stat(), os.fstat(lock.fileno())):
                return folder, lock
        except FileNotFoundError:
            pass
        lock.close()  # taken for abandoned in the moment before it was locked


def _locked(lock: BinaryIO, *, wait: bool) -> bool:
    """Lock an open file; False where the file system has no locks. Raises BlockingIOError when another has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise
    except OSError:
        return False
    return True


@contextmanager
def abandoned(entry: Path) -> Iterator[bool]:
    """Is this folder in ``incoming`` nobody's any more? It stays so until the block ends.

    Without a lock to ask (another system, a file system without locks, a copy made by an older lorary), what hasn't
    been written to for a day counts as abandoned.
    """
    try:
        lock = (entry / _LOCK).open("rb+")
    except OSError:
        yield _untouched(entry)
        return
    with lock:
        try:
            free = fcntl is not None and _locked(lock, wait=False)
        except BlockingIOError:
            yield False
            return
        yield free or _untouched(entry)


def _untouched(entry: Path) -> bool:
    try:
        times = [path.lstat().st_mtime for path in (entry, *entry.rglob("*"))]
    except OSError:
        return False  # it goes away by itself
    return max(times) < time.time() - _DAY
