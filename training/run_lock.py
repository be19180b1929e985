"""The lock of a run's folder: one process at a time works in it, and what a killed one left can be told from its work.

The system drops a lock with the process that held it, however that ended.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

LOCK = "lock"
_TRIES, _PAUSE = 10, 0.02  # another process may just be clearing the folder, or the empty one around it (s)
_MOMENT = 60.0  # seconds after which no process is about to lock the folder that it has made


def make_folder(folder: Path) -> bool:
    """Make a folder, which is its maker's to lock; False where it is there already. Raises OSError where it can't."""
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True)
            break
        except FileExistsError:
            return False
        except FileNotFoundError:
            if not left:
                raise
            time.sleep(_PAUSE)
    return True


def lock_folder(folder: Path) -> IO[Any]:
    """The folder's lock for this process until it is closed; the folder is made if it isn't there.

    Raises:
        BlockingIOError: another process has it; :func:`holder_of` says which.
        OSError: it can't be made.
    """
    for left in reversed(range(_TRIES)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if (lock := _locked(folder, "a+b")) is not None:
                break
        except (BlockingIOError, FileNotFoundError):
            if not left:
                raise
            time.sleep(_PAUSE)
    else:
        raise OSError("it is removed again and again")
    with suppress(OSError):  # a full disk is told of when the run is written down
        lock.truncate(0)
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())
    return lock


def lock_leftover(folder: Path) -> IO[Any] | None:
    """The lock of a folder that no process works in; None where one does, has only just made it, or it is no run's."""
    try:
        there = {path.name for path in folder.iterdir()}
        signed = LOCK in there and (folder / LOCK).stat().st_size > 0
        old = time.time() - folder.stat().st_mtime > _MOMENT
        # A kill may come before there is a lock, or before it is signed.
        return _locked(folder, "a+b") if signed or (old and there <= {LOCK}) else None
    except OSError:
        return None


def holder_of(folder: Path) -> str:
    """Who works in a folder, for messages."""
    process = (folder / LOCK).read_bytes()[:20].decode("ascii", "replace").strip()
    return f"process {process}" if process else "another process"


def _locked(folder: Path, mode: str) -> IO[Any] | None:
    """The lock's file, locked; None where the folder was removed meanwhile. Raises OSError where it can't be had."""
    path = folder / LOCK
    lock = path.open(mode)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock.fileno()), path.stat()):
                return lock
    except BaseException:
        lock.close()
        raise
    lock.close()
    return None
