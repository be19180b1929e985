"""The files of all versions, named by their content, beside the database: ``registry.store/objects/ab/cdef...``."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from lorary.hub.errors import CheckpointError, RegistryError, UnsafeFileError
from lorary.hub.files.staging import Staging, staging_folder
from lorary.hub.values import FileEntry

_SHA256 = re.compile(r"[0-9a-f]{64}")
_NO_SHA256 = "isn't a sha256: the registry's rows are damaged; go back to a copy of it"
_CHUNK = 1 << 20
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS)  # of network and FUSE file systems that sync files alone


class Store:
    """A folder of immutable objects. Nothing is made until something is copied in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._objects = folder / "objects"
        self._incoming = folder / "incoming"
        self._bases = folder / "bases"

    def path(self, sha256: str) -> Path:
        """Where an object is, or would be.

        Raises:
            UnsafeFileError: ``sha256`` isn't one, or a link stands in the object's place.
            RegistryError: the store can't be read.
        """
        if not _SHA256.fullmatch(sha256):
            raise UnsafeFileError(f"{self.folder}: {sha256!r} {_NO_SHA256}")
        return self._no_link(self._objects / sha256[:2] / sha256[2:], "file")

    @contextmanager
    def staging(self) -> Iterator[Staging]:
        """A place for copies that are on their way in; what isn't published when the block ends is deleted.

        Raises:
            RegistryError: the store can't be written.
        """
        with ExitStack() as stack:
            with self._named_errors("the copy"):
                folder = stack.enter_context(staging_folder(self._incoming))
            yield Staging(folder, self._copy)

    def publish(self, staging: Staging) -> None:
        """Move copied files to their places; call it in the write transaction that makes something refer to them.

        Objects that nothing refers to are deleted in write transactions too, so one that was just published can't be
        taken for a leftover. When this returns, the objects are on the disk.

        Raises:
            RegistryError: the store can't be written.
        """
        with self._named_errors("the new objects"):
            changed: set[Path] = set()
            for sha256, copy in staging.files.items():
                target = self.path(sha256)
                changed |= self._make_folder(target.parent)
                # Also where the object is there already: that mends one whose bytes have rotted.
                copy.replace(target)
                changed.add(target.parent)
            for folder in changed:
                sync_folder(folder)

    def publish_folder(self, copy: Path, digest: str) -> None:
        """Move a copied folder to its place, unless it is there already; as :meth:`publish`.

        Raises:
            RegistryError: the store can't be written.
        """
        target = self.folder_path(digest)
        with self._named_errors("the new base"):
            sync_folder(copy)
            changed = self._make_folder(target.parent)
            if _content(target) == _content(copy):
                return  # another name's: between deleting and moving, a kill would leave that one without its files
            # It may have rotted, or be half of what a removal left.
            shutil.rmtree(target, ignore_errors=True)
            copy.replace(target)
            for folder in {target.parent, *changed}:
                sync_folder(folder)

    def delete(self, sha256: str) -> None:
        """Delete an object that no version refers to; one that is gone already is fine.

        Raises:
            RegistryError: it can't be deleted.
        """
        path = self.path(sha256)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise RegistryError(f"{path}: can't be deleted ({error.strerror or error})") from error

    def folder_path(self, digest: str) -> Path:
        """Where the folder of a whole model is, or would be.

        Raises:
            UnsafeFileError: ``digest`` isn't a sha256, or a link stands in the folder's place.
            RegistryError: the store can't be read.
        """
        if not _SHA256.fullmatch(digest):
            raise UnsafeFileError(f"{self.folder}: {digest!r} {_NO_SHA256}")
        return self._no_link(self._bases / digest, "folder")

    def delete_folder(self, digest: str) -> None:
        """Delete the folder of a model that no base refers to. Raises RegistryError when it can't."""
        path = self.folder_path(digest)
        try:
            shutil.rmtree(path)
        except FileNotFoundError:
            return
        except OSError as error:
            raise RegistryError(f"{path}: can't be deleted ({error.strerror or error})") from error

    def objects(self) -> Iterator[str]:
        """The sha256 of each object that is there. Raises RegistryError when the store can't be read."""
        for part in self._listed(self._objects):
            if len(part) == 2:
                for rest in self._listed(self._objects / part):
                    if _SHA256.fullmatch(part + rest):
                        yield part + rest

    def folders(self) -> Iterator[str]:
        """The digest of each base's folder that is there. Raises RegistryError when the store can't be read."""
        yield from filter(_SHA256.fullmatch, self._listed(self._bases))

    def incoming(self) -> list[Path]:
        """The copies that are under way, or were broken off by a kill (:func:`.staging.abandoned`)."""
        return [self._incoming / name for name in self._listed(self._incoming)]

    def _no_link(self, path: Path, what: str) -> Path:
        try:
            linked = stat.S_ISLNK(path.lstat().st_mode)  # pathlib takes what can't be looked at for no link
        except (FileNotFoundError, NotADirectoryError):
            return path
        except OSError as error:
            raise self._unreadable(error) from error
        if linked:
            raise UnsafeFileError(f"{path}: is a link; the store holds files only, put the {what} itself there")
        return path

    def _listed(self, folder: Path) -> list[str]:
        """The names in a folder, sorted; ``glob`` takes one that can't be read for an empty one."""
        try:
            return sorted(path.name for path in folder.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> RegistryError:
        return RegistryError(f"{self.folder}: can't be read ({error.strerror or error}); check its permissions")

    def _make_folder(self, folder: Path) -> set[Path]:
        """Make a folder of the store; the folders whose entries that changed."""
        if folder.is_dir():
            return set()
        folder.mkdir(parents=True, exist_ok=True)
        return {folder.parent, self.folder, self.folder.parent}

    def _copy(self, source: Path, target: Path) -> FileEntry:
        with self._named_errors(source.name):
            target.parent.mkdir(exist_ok=True)
            return copy_file(source, target)

    @contextmanager
    def _named_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise RegistryError(
                    f"{self.folder}: no space left for {what} ({error.strerror}); make room and try again"
                ) from error
            raise RegistryError(
                f"{self.folder}: can't be written ({error.strerror or error}); check its permissions"
            ) from error


def _content(folder: Path) -> dict[str, FileEntry] | None:
    """The files of a folder that holds nothing else; None where it isn't one."""
    paths = list(folder.iterdir()) if folder.is_dir() else []
    whole = paths and all(path.is_file() and not path.is_symlink() for path in paths)
    return {path.name: hash_file(path) for path in paths} if whole else None


def hash_file(path: Path) -> FileEntry:
    """The sha256 and size of a file as it is on the disk now."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            digest.update(block)
            size += len(block)
    return FileEntry(digest.hexdigest(), size)


def copy_file(source: Path, target: Path) -> FileEntry:
    """Copy a file to where none is yet, onto the disk; the copy is read-only. Returns what was copied.

    Raises:
        CheckpointError: the source can't be read.
        OSError: the target can't be written.
    """
    digest, size = hashlib.sha256(), 0
    try:
        reader = source.open("rb")
    except OSError as error:
        raise CheckpointError(f"{source}: can't be read ({error.strerror or error})") from error
    # Objects are never edited in place, hence no write permission; the umask decides who may read.
    handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o444)
    with reader, os.fdopen(handle, "wb") as writer:
        while block := reader.read(_CHUNK):
            writer.write(block)
            digest.update(block)
            size += len(block)
        writer.flush()
        os.fsync(writer.fileno())
    return FileEntry(digest.hexdigest(), size)


def sync_folder(folder: Path) -> None:
    """Make what was written, renamed or removed in ``folder`` reach the disk, where that can be asked for."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return  # Windows opens no folders, and one that may be written and entered needn't be one that may be read
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)
