"""Opening ``registry.db``: for reading without leaving a trace, for writing one transaction at a time.

The file is in SQLite's rollback-journal mode. A write takes the write lock at its beginning (``BEGIN IMMEDIATE``), so
that several processes queue instead of failing; a reader opens the file read-only.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import RegistryError, UsageError
from lorary.hub.finding.fulltext import refresh
from lorary.hub.tables.mounts import warn_of_network
from lorary.hub.tables.schema import is_current, migrate

if TYPE_CHECKING:
    from sqlite_utils import Database

_PATIENCE = 30.0  # seconds to wait for another process's write
_SMALLEST_PAGE = 512  # bytes
_READ_ONLY = "can't be written, the file or its folder is read-only; copy it elsewhere or change the permissions"
_NOT_SQLITE = "isn't a SQLite file, and so no registry; name another one"
_WAL_MARK, _JOURNAL_MARK = b"\x02\x02", b"\x01\x01"
"""Bytes 18 and 19 of the file: https://www.sqlite.org/fileformat.html#file_format_version_numbers."""
_PAUSE = 0.01  # seconds until a file that is just being written is copied again


@contextmanager
def reading(path: Path) -> Iterator[Database | None]:
    """A snapshot of the registry, or None where there is none yet. The file and its folder stay as they are.

    Raises:
        RegistryError: the file can't be read, or isn't a registry.
    """
    if not path.exists():
        yield None
        return
    with _named_errors(path):
        _demand_database(path)
        with _reader(path) as db:
            yield db if db.table_names() else None


@contextmanager
def _reader(path: Path) -> Iterator[Database]:
    older = False
    for attempt in range(2):
        with closing(_open_to_read(path)) as connection:
            db = _wrap(connection)
            try:
                connection.execute("BEGIN")
                current = is_current(db, str(path)) or not db.table_names()
                older = not current
            except sqlite3.OperationalError as error:
                if attempt or error.sqlite_errorname not in ("SQLITE_READONLY_ROLLBACK", "SQLITE_READONLY_RECOVERY"):
                    raise
                current = False  # a writer was killed in its last step: the next opening for writing undoes it
            if current:
                # kB; with SQLite's 2 MB a search reads the same pages many times. Not before: it opens the file.
                connection.execute("PRAGMA cache_size = -32000")
                yield db
                return
        try:
            with writing(path):
                pass  # undoes what a killed writer left, and brings an older registry's tables up to date
        except RegistryError as error:
            if not older:
                raise
            raise RegistryError(
                f"an older lorary's registry has to be brought up to date before it can be read: {error}"
            ) from error
    raise AssertionError("a registry that was just brought up to date is up to date")


@contextmanager
def writing(path: Path) -> Iterator[Database]:
    """One write transaction on the registry, which is made if there is none; an exception undoes all of it.

    Raises:
        RegistryError: the file can't be written, is busy for longer than half a minute, or isn't a registry.
    """
    with _named_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        warn_of_network(path.resolve())
        demand_writable(path)
        _demand_database(path)
        with closing(_connect(f"{path.as_uri()}?mode=rwc")) as connection:
            # EXTRA also syncs the folder after the journal is deleted, which is what commits.
            connection.execute("PRAGMA synchronous = EXTRA")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("BEGIN IMMEDIATE")
            try:
                db = _wrap(connection)
                migrate(db, str(path))
                yield db
                refresh(db)
                connection.execute("COMMIT")
            except BaseException:
                with suppress(sqlite3.Error):  # the first error is the one to tell
                    connection.execute("ROLLBACK")
                raise


@contextmanager
def nothing() -> Iterator[Database]:
    """A catalogue in memory that holds nothing: what a question is checked on where there is no registry yet."""
    with _named_errors(Path("memory")), closing(_connect("file::memory:")) as connection:
        db = _wrap(connection)
        migrate(db, "memory")
        yield db


def change_stamp(path: Path) -> tuple[object, ...]:
    """A value that is another one after every write to the registry; taking it locks and opens nothing.

    SQLite counts the writes in bytes 24 to 27 of the file (https://www.sqlite.org/fileformat.html#file_change_counter);
    times and sizes are there for a file that was replaced, and for somebody else's write-ahead log.
    """
    try:
        with path.open("rb") as file:
            counter, status = file.read(28)[24:], os.fstat(file.fileno())
        log = path.with_name(f"{path.name}-wal")
        written = log.stat() if log.exists() else None
    except OSError:
        return ()  # none there, or being replaced: whoever reads it next is told
    logged = (written.st_size, written.st_mtime_ns) if written else None
    return counter, status.st_ino, status.st_size, status.st_mtime_ns, logged


def demand_writable(path: Path) -> None:
    """Find out beforehand whether the registry could be written. Raises RegistryError when it couldn't."""
    # SQLite itself opens a read-only file without a word and fails at the first row, after the files were copied.
    for place in (path, path.parent):
        if place.exists() and not os.access(place, os.W_OK):
            raise RegistryError(f"{path}: {_READ_ONLY}")
    # `a` and `a.db` both keep their files in `a.store`, and each would delete the other's as leftovers.
    real = path.resolve()
    twin = real.with_suffix("") if real.suffix == ".db" else real.with_name(f"{real.name}.db")
    if _is_registry(twin):
        store = f"{twin.name.removesuffix('.db')}.store"
        raise RegistryError(f"{path}: would keep its files in {store}, where {twin.name} has its; name it otherwise")


def _is_registry(path: Path) -> bool:
    try:
        if not path.is_file() or path.stat().st_size < _SMALLEST_PAGE:
            return False
        with closing(_open_to_read(path)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except (OSError, sqlite3.Error):
        return False
    return {"adapters", "versions", "files"} <= tables


def _demand_database(path: Path) -> None:
    if path.exists() and not path.is_file():  # a pipe would keep the reader waiting for ever
        kind = "a folder" if path.is_dir() else "no ordinary file"
        raise RegistryError(f"{path}: is {kind}, and so no registry; name a file")
    # SQLite takes a few bytes of anything for an empty database and would write over them.
    if path.is_file() and 0 < path.stat().st_size < _SMALLEST_PAGE:
        raise RegistryError(f"{path}: {_NOT_SQLITE}")


def _connect(uri: str) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, timeout=_PATIENCE, isolation_level=None)
    # The file may come from somebody else: functions in its views and triggers don't run.
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA temp_store = MEMORY")
    return connection


def _wrap(connection: sqlite3.Connection) -> Database:
    from sqlite_utils import Database

    return Database(connection, execute_plugins=False)


def _open_to_read(path: Path) -> sqlite3.Connection:
    """A connection to read by, which makes no files.

    A file in WAL mode is somebody else's doing, and any reader of it would make -wal and -shm files and leave them
    behind. While it has no log, the file alone is the whole registry, and is read from a copy in memory: opened as
    immutable, it would be read without a lock, and become another one in the midst of it when somebody writes.
    """
    deadline = time.monotonic() + _PATIENCE
    while _in_wal_mode(path) and not _has_log(path):
        before = change_stamp(path)
        image = bytearray(path.read_bytes())
        # A writer fills its log first, and has one for as long as it changes the file.
        if change_stamp(path) == before and not _has_log(path):
            return _open_copy(image)
        if time.monotonic() > deadline:
            raise RegistryError(f"{path}: {_busy()}")
        time.sleep(_PAUSE)
    return _connect(f"{path.as_uri()}?mode=ro")


def _in_wal_mode(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(20)[18:] == _WAL_MARK


def _has_log(path: Path) -> bool:
    log = path.with_name(f"{path.name}-wal")
    return log.exists() and log.stat().st_size > 0


def _open_copy(image: bytearray) -> sqlite3.Connection:
    image[18:20] = _JOURNAL_MARK  # in memory SQLite has no WAL
    connection = _connect("file::memory:")
    connection.deserialize(image)
    return connection


@contextmanager
def _named_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", "")
        raise RegistryError(f"{path}: {_explain(name, error)}") from error
    except UnicodeEncodeError as error:  # of what is looked for: a shell hands other bytes on so
        raise UsageError(f"{error.object!r:.100} isn't text in UTF-8, and so nothing in a registry") from error
    except OSError as error:
        raise RegistryError(f"{path}: {error.strerror or error}; check the path and its permissions") from error


def _busy() -> str:
    return f"kept busy by another process for {_PATIENCE:.0f} seconds; try again when it has finished"


def _explain(name: str, error: sqlite3.Error) -> str:
    if name == "SQLITE_FULL":
        return "no space left on the disk; nothing was changed, make room and try again"
    if name.startswith("SQLITE_READONLY"):
        return _READ_ONLY
    if name.startswith("SQLITE_CANTOPEN"):
        return "can't be opened; check the path and the permissions of the file and its folder"
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return _busy()
    if name == "SQLITE_NOTADB":
        return _NOT_SQLITE
    return f"can't be used ({error}); if it is damaged, go back to a copy"
