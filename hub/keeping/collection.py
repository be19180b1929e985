"""Deleting what commands that were broken off have left in the store."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import LoraryError, UnknownReferenceError
from lorary.hub.files.staging import abandoned
from lorary.hub.files.store import Store
from lorary.hub.keeping.removal import needs_folder, needs_object
from lorary.hub.tables.database import reading, writing
from lorary.hub.values import Collected

if TYPE_CHECKING:
    from sqlite_utils import Database

_BATCH = 500  # files deleted in one write transaction, so that other writers get their turn


_NO_HASH = "typeof({0}) <> 'text' OR length({0}) <> 64 OR {0} GLOB '*[^0-9a-f]*'"
_DAMAGED = (
    f"SELECT count(*) FROM files WHERE {_NO_HASH.format('sha256')} UNION ALL "
    f"SELECT count(*) FROM bases WHERE digest IS NOT NULL AND ({_NO_HASH.format('digest')})"
)


def collect(path: Path, store: Store, *, dry_run: bool = False) -> Collected:
    """Delete objects, copies and folders of bases that nothing in the registry needs; ``dry_run`` only counts them.

    Safe beside commands that are adding something: see :mod:`lorary.hub.keeping.removal` and
    :mod:`lorary.hub.files.staging`. What can't be deleted is told in the result's ``problems``, and the rest is
    deleted all the same.

    Raises:
        UnknownReferenceError: there is no registry, so nothing says what is needed.
    """
    with reading(path) as db:
        if db is None:
            raise UnknownReferenceError(
                f"there is no registry at {path}, so nothing tells which files of {store.folder} are needed; "
                "nothing was deleted"
            )
        objects = [sha256 for sha256 in store.objects() if not needs_object(db, sha256)]
        folders = [digest for digest in store.folders() if not needs_folder(db, digest)]
        damaged = [count for (count,) in db.execute(_DAMAGED)]
    collection = _Collection(path, store, dry_run)
    if any(damaged):  # what such a row needs can't be known
        collection.tell(
            f"{sum(damaged)} row(s) don't say which file they need, so none is deleted; see `lorary verify`"
        )
        return collection.run([], [])
    return collection.run(objects, folders)


class _Collection:
    def __init__(self, path: Path, store: Store, dry_run: bool) -> None:
        self._path, self._store, self._dry_run = path, store, dry_run
        self._bytes = 0
        self._problems: list[str] = []

    def tell(self, problem: str) -> None:
        """Add to what couldn't be deleted, and why."""
        self._problems.append(problem)

    def run(self, objects: list[str], folders: list[str]) -> Collected:
        copies, busy = self._copies()
        return Collected(
            objects=self._unneeded(objects, needs_object, self._store.path, self._store.delete),
            copies=copies,
            bases=self._unneeded(folders, needs_folder, self._store.folder_path, self._store.delete_folder),
            bytes=self._bytes,
            busy=busy,
            problems=tuple(self._problems),
        )

    def _copies(self) -> tuple[int, int]:
        deleted = busy = 0
        for copy in self._store.incoming():
            with abandoned(copy) as free:
                if free:
                    deleted += self._take(copy, lambda copy=copy: _delete(copy))  # type: ignore[misc]
                elif copy.exists():
                    busy += 1
        return deleted, busy

    def _unneeded(
        self,
        names: list[str],
        needed: Callable[[Database, str], bool],
        place: Callable[[str], Path],
        delete: Callable[[str], None],
    ) -> int:
        deleted = 0
        for first in range(0, len(names), _BATCH):
            # Asked again under the lock: what nothing referred to may have come in once more since.
            with self._locked() as db:
                for name in names[first : first + _BATCH]:
                    if not needed(db, name):
                        deleted += self._named(name, place, delete)
        return deleted

    @contextmanager
    def _locked(self) -> Iterator[Database]:
        with reading(self._path) if self._dry_run else writing(self._path) as db:
            assert db is not None  # there was a registry a moment ago
            yield db

    def _named(self, name: str, place: Callable[[str], Path], delete: Callable[[str], None]) -> bool:
        try:
            path = place(name)
        except LoraryError as error:
            self._problems.append(str(error))
            return False
        return self._take(path, lambda: delete(name))

    def _take(self, path: Path, delete: Callable[[], None]) -> bool:
        try:
            path.lstat()  # of what is gone the sum is 0
            size = sum(one.lstat().st_size for one in (path, *path.rglob("*")) if one.is_symlink() or one.is_file())
            if not self._dry_run:
                delete()
        except FileNotFoundError:
            return False  # another collection was quicker
        except LoraryError as error:
            self._problems.append(str(error))
            return False
        except OSError as error:
            self._problems.append(f"{path}: can't be deleted ({error.strerror or error})")
            return False
        self._bytes += size
        return True


def _delete(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
