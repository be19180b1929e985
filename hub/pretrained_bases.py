"""Base models that were pretrained here: catalogued by name, their files in a folder beside the database."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import asdict
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorary.hub.errors import (
    BaseNotFoundError,
    ChangedFilesError,
    CheckpointError,
    LoraryError,
    RegistryConflictError,
    UnknownReferenceError,
    UnsafeFileError,
)
from lorary.hub.files.store import Store, hash_file
from lorary.hub.keeping.removal import sweep_folder
from lorary.hub.provenance.private import is_absolute, last_part, local_folder
from lorary.hub.reference import check_name
from lorary.hub.registry_path import suggested
from lorary.hub.tables.bases import base_rows, named_rows, select_bases, select_one_base, users_of
from lorary.hub.tables.database import reading, writing
from lorary.hub.tables.insertion import Metrics, check_metrics
from lorary.hub.values import FileEntry, Finding, PretrainedBase, Unreadable

if TYPE_CHECKING:
    from sqlite_utils import Database

    from lorary.hub.registry import Registry


class Bases:
    """The pretrained bases of a registry, at ``path`` and in ``store``."""

    def __init__(self, path: Path, store: Store) -> None:
        self._path, self._store = path, store

    def add(
        self,
        source: Path,
        *,
        name: str,
        fingerprint: str,
        architecture: str,
        parameters: int,
        metrics: Metrics,
        provenance: Mapping[str, Any],
        expected: str | None = None,
    ) -> PretrainedBase:
        """Register a model's folder under a name, with a copy of its files.

        A folder of the same content under the same name changes nothing.

        Args:
            source: a folder written by ``save_pretrained``; all of its files are taken.
            fingerprint: the base fingerprint (:func:`lorary.hub.base.fingerprint`).
            architecture: transformers' ``model_type``.
            parameters: how many the model has.
            metrics: numbers by split and name.
            provenance: JSON values that say how the base was made: corpus hashes, recipe, environment.
            expected: the digest that its files must come to, where one is known.

        Raises:
            CheckpointError: the folder can't be read, or holds links or folders, or something else than is expected.
            InvalidReferenceError: the name can't be one.
            RegistryConflictError: another base has that name.
            RegistryError: the registry or its store can't be written.
        """
        check_name(name)
        files = _hashed(source)
        digest = _digest(files)
        if expected not in (None, digest):
            raise ChangedFilesError(f"{source}: its files aren't what was registered, see `lorary verify` there")
        if known := self.demand_free(name, digest):
            return known
        details = {"metrics": check_metrics(metrics), "provenance": dict(provenance)}
        row = {
            "fingerprint": fingerprint,
            "id": name,
            "commit": None,
            "digest": digest,
            "architecture": architecture,
            "parameters": parameters,
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "details": json.dumps(details, sort_keys=True, ensure_ascii=False, allow_nan=False),
        }
        with self._store.staging() as staging:
            copy = staging.put_folder(source, files)
            with writing(self._path) as db:
                if select_bases(db, self._store, "id = ?", [name]):  # another process was quicker
                    raise RegistryConflictError(
                        f"a base {name!r} has come into {self._path} meanwhile; choose another name"
                    )
                db.table("bases").insert(row, pk=("fingerprint", "id"), replace=True)
                db.table("base_files").insert_all({"base": name, "name": file, **asdict(files[file])} for file in files)
                self._store.publish_folder(copy, digest)
                return select_bases(db, self._store, "id = ?", [name])[0]

    def demand_free(self, name: str, digest: str | None = None) -> PretrainedBase | None:
        """The base of that name where it has this digest, None where the name is free.

        Raises:
            RegistryConflictError: another base has that name.
        """
        known = self.find(name)
        if known is not None and known.digest != digest:
            raise RegistryConflictError(
                f"{self._path} has a base {name!r} already (of {known.created_at[:10]}); choose another name, or "
                f"remove it with `{suggested(f'lorary bases --remove {name}', self._path)}`"
            )
        return known

    def find(self, name: str) -> PretrainedBase | None:
        """The base of that name, None where there is none."""
        with reading(self._path) as db:
            found = select_bases(db, self._store, "id = ?", [name]) if db else []
        return found[0] if found else None

    def get(self, name: str) -> PretrainedBase:
        """The base of that name.

        Raises:
            UnknownReferenceError: there is none; the message offers near names.
        """
        if found := self.find(name):
            return found
        with reading(self._path) as db:
            raise self._unknown(db, name)

    def _unknown(self, db: Database | None, name: str) -> UnknownReferenceError:
        names = [str(row_name) for _, row_name in base_rows(db)] if db else []
        near = get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else "`lorary pretrain` makes one"
        return UnknownReferenceError(f"no base named {name!r} in {self._path}; {hint}")

    def all(self) -> list[PretrainedBase]:
        """All pretrained bases, by name.

        Raises:
            RegistryError: the row of one of them is damaged; :meth:`each` has the others.
        """
        with reading(self._path) as db:
            return select_bases(db, self._store) if db else []

    def each(self) -> list[PretrainedBase | Unreadable]:
        """The same, with what is known of a base whose row is damaged in its place instead of an error."""
        with reading(self._path) as db:
            return [one for row in base_rows(db) for one in select_one_base(db, self._store, *row)] if db else []

    def remove(self, name: str, *, force: bool = False) -> PretrainedBase | Unreadable:
        """Remove a base and its files; of one whose row is damaged what is known is returned.

        Raises:
            UnknownReferenceError: there is no such base.
            RegistryConflictError: adapters in the catalogue were trained on it, and ``force`` isn't set.
        """
        with reading(self._path) as db:
            if db is None or not named_rows(db, name):  # an unknown name makes no registry
                raise self._unknown(db, name)
        with writing(self._path) as db:
            rows = named_rows(db, name)
            if not rows:  # another process was quicker
                raise self._unknown(db, name)
            (base, *_) = [one for row_id, _, _ in rows for one in select_one_base(db, self._store, row_id, name)]
            needed = users_of(db, name, [fingerprint for _, fingerprint, _ in rows], isinstance(base, Unreadable))
            if needed and not force:
                raise RegistryConflictError(
                    f"base {name!r} is needed by {', '.join(needed[:5])}"
                    f"{' and more' if len(needed) > 5 else ''}; remove these first, or force it"
                )
            db.execute("DELETE FROM base_files WHERE base = ?", [name])
            # Adapters' rows still know the base by its id, so only what was made here goes.
            db.execute(
                "UPDATE bases SET digest = NULL, architecture = NULL, parameters = NULL, created_at = NULL, "
                "details = NULL WHERE id = ? AND digest IS NOT NULL",
                [name],
            )
        for _, _, digest in rows:
            with suppress(LoraryError):  # the base is gone from the catalogue; files that stay do no harm
                sweep_folder(self._path, self._store, str(digest))
        return base

    def folders_of(self, name: str) -> list[Path]:
        """The folders that adapters were trained on whose files call their base by this name; those that are there."""
        known = "SELECT DISTINCT id FROM bases WHERE fingerprint IN (SELECT fingerprint FROM bases WHERE id = ?)"
        with reading(self._path) as db:
            ids = [str(row["id"]) for row in db.query(known, [name])] if db else []
        paths = [local_folder(text) for text in ids if is_absolute(text) and last_part(text) == name]
        return [path for path in paths if path and (path / "config.json").is_file()]

    def verify(self) -> Iterator[Finding]:
        """What is wrong with the bases' rows and files; a row that can't be read hides none of the others."""
        for base in self.each():
            if isinstance(base, Unreadable):
                yield Finding(base.reference, f"base {base.reference!r}: {base.problem}")
            else:
                yield from self._verify_files(base)

    def _verify_files(self, base: PretrainedBase) -> Iterator[Finding]:
        for name, entry in base.files.items():
            path = base.folder / name
            try:
                found = hash_file(path) if path.is_file() else None
            except OSError as error:
                yield Finding(base.name, f"{name}: {error}")
                continue
            if found is None:
                yield Finding(base.name, f"base {base.name}: {name} is missing from {base.folder}")
            elif found != entry:
                yield Finding(base.name, f"base {base.name}: {name}: its content has changed ({path})")


def _hashed(source: Path) -> dict[str, FileEntry]:
    try:
        paths = sorted(source.iterdir())
        if odd := next((path for path in paths if path.is_symlink() or not path.is_file()), None):
            raise UnsafeFileError(f"{odd}: is a link or a folder; expected the files of a model alone")
        return {path.name: hash_file(path) for path in paths}
    except OSError as error:
        raise CheckpointError(f"{source}: can't be read ({error.strerror or error})") from error


def _digest(files: Mapping[str, FileEntry]) -> str:
    listing = "".join(f"{entry.sha256}  {name}\n" for name, entry in sorted(files.items()))
    return hashlib.sha256(b"lorary-base-files-1\n" + listing.encode()).hexdigest()


_REGISTRY: ContextVar[Registry | None] = ContextVar("lorary_registry_of_bases", default=None)


@contextmanager
def bases_of(registry: Registry | None) -> Iterator[None]:
    """Within the block, names of bases are looked up in this registry; None: in that around it, or the default."""
    token = _REGISTRY.set(registry or _REGISTRY.get())
    try:
        yield
    finally:
        _REGISTRY.reset(token)


def find_base(name: str) -> PretrainedBase | None:
    """The pretrained base of that name in the registry of :func:`bases_of`, else in the default one."""
    return _registry().bases.find(name)


def find_folder(name: str) -> Path | None:
    """The folder of this machine that the files of adapters in that registry call by this name as their base.

    Raises:
        BaseNotFoundError: there are several.
    """
    folders = _registry().bases.folders_of(name)
    if len(folders) > 1:
        raise BaseNotFoundError(f"base {name!r} may be {' or '.join(map(str, folders))}; give the folder")
    return folders[0] if folders else None


def _registry() -> Registry:
    from lorary.hub.registry import Registry

    return _REGISTRY.get() or Registry()
