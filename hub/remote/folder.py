"""A folder that several machines share, as a remote: one folder per adapter, and in it one for each version.

``versions/3/`` never changes once it is there: it is written beside, synced, and renamed into its place.
``aliases/prod`` holds a version's number. Writers take turns by a lock on ``lock``; where the file system has none, the
rename decides.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from lorary.hub.checkpoint import KEPT_FILES
from lorary.hub.errors import (
    ChangedFilesError,
    RemoteConflictError,
    RemoteError,
    UnknownReferenceError,
    UnsafeFileError,
)
from lorary.hub.files.store import copy_file, sync_folder
from lorary.hub.reference import check_name
from lorary.hub.remote.address import folder_url
from lorary.hub.remote.base import Fetched, Parcel, State, check_listing
from lorary.hub.remote.versionfile import MAX_BYTES, VERSION_NAME, VersionFile, parse_version_file

_VERSIONS = "versions"
_NUMBER = re.compile(r"[1-9][0-9]{0,5}")
_PATIENCE = 30.0  # seconds to wait for another writer
_ABANDONED = 24 * 3600.0  # seconds after which what a killed push left behind is cleared away


@dataclass(frozen=True)
class SharedFolder:
    """An adapter's folder in a shared one."""

    path: Path

    @classmethod
    def of(cls, path: Path, name: str | None) -> SharedFolder:
        """The adapter's folder at ``path``, or below it under its ``name``."""
        return cls(path if name is None or holds_versions(path) else path / name)

    @property
    def address(self) -> str:
        """``file:///a/shared/folder/name``."""
        return folder_url(self.path)

    def state(self) -> State | None:
        """See :class:`~lorary.hub.remote.base.Remote`."""
        with self._named_errors():
            if not (self.path / _VERSIONS).is_dir():
                self._demand_parent()
                return None
            numbers = self._numbers()
            stated = {number: self._stated(number) for number in numbers}
            aliases = self._aliases(numbers)
        latest = stated[max(numbers)] if numbers else None
        places = {number: f"v{number}" for number in numbers}
        return State(
            commit=places[max(numbers)] if numbers else "",
            adapter=bool(numbers),
            versions={number: stated[number].digest for number in numbers},
            commits=places,
            aliases=aliases,
            tags={place: place for place in places.values()} | {name: places[to] for name, to in aliases.items()},
            latest=latest,
        )

    @contextmanager
    def fetch(self, revision: str | None) -> Iterator[Fetched]:
        """See :class:`~lorary.hub.remote.base.Remote`; the files are the folder's own."""
        with self._named_errors():
            number = self._number(revision)
            folder = self.path / _VERSIONS / str(number)
            shown = f"{self.address}@v{number}"
            sizes = {path.name: _plain_size(path, shown) for path in _entries(folder)}
            names = check_listing(sizes, shown)
            stated = self._stated(number)
            aliases = self._aliases({number})
        files = {name: folder / name for name in names if name in KEPT_FILES}
        yield Fetched(f"v{number}", files, stated, tuple(sorted(aliases)))

    def publish(self, parcel: Parcel, seen: State | None, *, message: str, public: bool) -> str:
        """See :class:`~lorary.hub.remote.base.Remote`; a folder keeps no message, and its permissions are its own."""
        number = parcel.stated.number
        with self._named_errors():
            (self.path / _VERSIONS).mkdir(parents=True, exist_ok=True)
            self._clear()
            temporary = self.path / "incoming" / secrets.token_hex(16)
            temporary.mkdir(parents=True)
            try:
                for name, part in parcel.contents.items():
                    _write(temporary / name, part, parcel)
                sync_folder(temporary)
                with self._lock():
                    if set(self._numbers()) - set(seen.versions if seen else ()):
                        raise RemoteConflictError(self._beaten())
                    self._rename(temporary, self.path / _VERSIONS / str(number))
                for folder in (self.path / _VERSIONS, self.path, self.path.parent):
                    sync_folder(folder)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
        return f"v{number}"

    def commit_of(self, number: int, state: State) -> str | None:
        """See :class:`~lorary.hub.remote.base.Remote`."""
        return state.commits.get(number)

    def point(self, number: int, commit: str, aliases: Collection[str], state: State) -> list[str]:
        """See :class:`~lorary.hub.remote.base.Remote`; a version is found by its number, so only aliases move."""
        moved = [f"v{number}"] if number not in state.versions else []
        with self._named_errors():
            for alias in sorted(aliases):
                if state.aliases.get(alias) == number:
                    continue
                place = self.path / "aliases" / check_name(alias, "alias")
                place.parent.mkdir(exist_ok=True)
                temporary = self.path / "incoming" / secrets.token_hex(16)
                temporary.parent.mkdir(exist_ok=True)
                _write(temporary, f"{number}\n".encode())
                temporary.replace(place)
                sync_folder(place.parent)
                moved.append(alias)
        return moved

    def _numbers(self) -> list[int]:
        return sorted(int(path.name) for path in _entries(self.path / _VERSIONS) if _NUMBER.fullmatch(path.name))

    def _demand_parent(self) -> None:
        if not self.path.parent.is_dir():
            raise RemoteError(f"{self.address}: there is no folder {self.path.parent}; is it mounted?")

    def _number(self, revision: str | None) -> int:
        numbers = self._numbers() if (self.path / _VERSIONS).is_dir() else []
        if not numbers:
            self._demand_parent()
            below = [path for path in _entries(self.path) if holds_versions(path)] if self.path.is_dir() else []
            hint = f"; did you mean {SharedFolder(below[0]).address}?" if below else ""
            raise UnknownReferenceError(f"{self.address}: holds no version of an adapter{hint}")
        if revision is None:
            return numbers[-1]
        named = {f"v{number}": number for number in numbers} | self._aliases(numbers)
        if revision not in named:
            raise UnknownReferenceError(f"{self.address}: has no {revision!r}; it has {', '.join(named)}")
        return named[revision]

    def _stated(self, number: int) -> VersionFile:
        shown = f"{self.address}@v{number}"
        path = self.path / _VERSIONS / str(number) / VERSION_NAME
        if _plain_size(path, shown) > MAX_BYTES:
            raise UnsafeFileError(f"{shown}: {VERSION_NAME} is larger than {MAX_BYTES:,} bytes")
        stated = parse_version_file(path.read_bytes(), shown)
        if stated.number != number:
            raise RemoteError(f"{shown}: its {VERSION_NAME} is version {stated.number}'s; was the folder renamed?")
        return stated

    def _aliases(self, numbers: Collection[int]) -> dict[str, int]:
        aliases: dict[str, int] = {}
        if not (self.path / "aliases").is_dir():
            return aliases
        for path in _entries(self.path / "aliases"):
            if not 0 < _plain_size(path, self.address) <= 20:
                continue  # some storage servers put a folder of theirs into each
            text = path.read_bytes().decode("ascii", "replace").strip()
            if _NUMBER.fullmatch(text) and int(text) in numbers:
                aliases[path.name] = int(text)
        return aliases

    def _rename(self, source: Path, target: Path) -> None:
        try:
            source.rename(target)
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise RemoteConflictError(self._beaten()) from error
            raise

    def _beaten(self) -> str:
        return f"{self.address}: somebody else pushed a version at the same time; nothing was overwritten, try again"

    def _clear(self) -> None:
        for path in _entries(self.path / "incoming") if (self.path / "incoming").is_dir() else ():
            with suppress(OSError):
                if path.lstat().st_mtime < time.time() - _ABANDONED:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        with (self.path / "lock").open("ab") as file:
            deadline = time.monotonic() + _PATIENCE
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise RemoteError(
                            f"{self.address}: another push has kept it busy for {_PATIENCE:.0f} s"
                        ) from None
                    time.sleep(0.05)
                except OSError:  # a file system without locks
                    break
            yield

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise RemoteError(
                    f"{self.address}: no space left there ({error.strerror}); nothing was changed"
                ) from error
            where = error.filename or self.path
            raise RemoteError(
                f"{self.address}: {where}: {error.strerror or error}; check the path and its permissions"
            ) from error


def holds_versions(path: Path) -> bool:
    """Is this an adapter's folder? An adapter may be called "versions" itself, so its name says nothing."""
    return may_hold_versions(path, unseen=False)


def may_hold_versions(path: Path, *, unseen: bool = True) -> bool:
    """:func:`holds_versions`, and ``unseen`` where nobody lets us look."""
    try:
        return any(_NUMBER.fullmatch(entry.name) for entry in (path / _VERSIONS).iterdir())
    except OSError as error:
        return unseen and isinstance(error, PermissionError)


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def _plain_size(path: Path, shown: str) -> int:
    """The size of what must be a plain file, 0 for a folder: links may lead anywhere."""
    status = path.lstat()
    if stat.S_ISDIR(status.st_mode):
        return 0
    if not stat.S_ISREG(status.st_mode):
        raise UnsafeFileError(f"{shown}: {path.name} is a link or a device, expected a file")
    return status.st_size


def _write(target: Path, part: Path | bytes, parcel: Parcel | None = None) -> None:
    if isinstance(part, Path):
        copied, expected = copy_file(part, target), parcel.stated.files.get(target.name) if parcel else None
        if expected is not None and copied != expected:
            raise ChangedFilesError(f"{target.name}: isn't what was registered; nothing was sent, see `lorary verify`")
        return
    with target.open("xb") as file:
        file.write(part)
        file.flush()
        os.fsync(file.fileno())
