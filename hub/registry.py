"""The catalogue of adapters: one SQLite file, and beside it the files of all versions."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from contextlib import suppress
from pathlib import Path

from lorary.hub.aliases import adapter_of, drop_aliases, history, roll_back, set_alias, signature
from lorary.hub.bases import Bases
from lorary.hub.catalogue import choose_domain, choose_task, describe, select
from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.database import change_stamp, reading, writing
from lorary.hub.errors import CheckpointError, LoraryError, RegistryConflictError, UnknownReferenceError, UsageError
from lorary.hub.insertion import Metrics, NewVersion, check_metrics, insert, registered
from lorary.hub.lookup import locate, registry_reference
from lorary.hub.metrics import lower_is_better
from lorary.hub.reference import check_name
from lorary.hub.search import Condition, conditions_for, mentions, normalise_tags
from lorary.hub.store import Store
from lorary.hub.values import AliasMove, FileEntry, Finding, Version
from lorary.hub.verification import check_database, check_leftovers, check_version, open_version

PATH_VARIABLE = "LORARY_REGISTRY"


class Registry:
    """A catalogue of adapters' versions.

    Args:
        path: the SQLite file; by default what ``LORARY_REGISTRY`` names, else ``registry.db`` in the current folder.
            It is made by the first write. The adapters' files are beside it, in ``registry.store/``.

    Every method opens the file anew, so an instance may be shared by threads and outlive changes by other processes.
    Methods that write raise :class:`~lorary.hub.errors.RegistryError` when they can't, and then change nothing; all
    of them raise it for a file that isn't a registry, and :class:`~lorary.hub.errors.RegistryVersionError` for one
    written by a newer lorary.
    """

    def __init__(self, path: str | Path | None = None) -> None:
        chosen = path if path is not None else os.environ.get(PATH_VARIABLE) or "registry.db"
        self.path = Path(chosen).expanduser().absolute()
        real = self.path.resolve()  # SQLite follows a link to the database; its files are beside the database itself
        self._store = Store(real.with_name(f"{real.name.removesuffix('.db')}.store"))

    def __repr__(self) -> str:
        return f"Registry({str(self.path)!r})"

    @property
    def bases(self) -> Bases:
        """The base models that were pretrained here."""
        return Bases(self.path, self._store)

    def add(
        self,
        source: str | Path | Checkpoint,
        *,
        name: str,
        domain: str | None = None,
        task: str | None = None,
        metrics: Metrics | None = None,
        tags: Iterable[str] = (),
        parents: Iterable[str] = (),
        strategy: str = "import",
    ) -> Version:
        """Register a checkpoint as the next version of ``name``, with a copy of its files.

        When the name has a version with the same digest, that one is returned and nothing changes.

        Args:
            source: a folder written by PEFT's ``save_pretrained``, or what ``read_checkpoint`` made of it.
            name: lower-case letters, digits, ``.``, ``_`` and ``-``.
            domain: the subject matter; by default the manifest's.
            task: a Hugging Face pipeline tag; by default what the checkpoint says.
            metrics: numbers by split and name, see :class:`Version`.
            tags: words to find it by.
            parents: references of the versions it was trained from.
            strategy: how it was trained.

        Raises:
            CheckpointError: the source can't be read as a checkpoint.
            UsageError: a name, a metric or a tag that can't be one, or neither the source nor the caller says the task.
            RegistryConflictError: the name stands for another domain or task.
            UnknownReferenceError: a parent that isn't there.
        """
        check_name(name)
        checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(source)
        new = NewVersion(
            name=name,
            domain=choose_domain(checkpoint, domain),
            task=choose_task(checkpoint, task),
            description=describe(checkpoint),
            base_commit=checkpoint.manifest.base.commit if checkpoint.manifest else None,
            metrics=check_metrics(metrics),
            tags=normalise_tags(tags),
            parents=tuple(parents),
            strategy=strategy,
        )
        # Before anything is copied: can this registry be written, and is there anything to do?
        with writing(self.path) as db:
            for parent in new.parents:
                locate(db, parent, self.path)
            if known := registered(db, new):
                return known
        entries: dict[str, FileEntry] = {}
        try:
            for file_name, path in checkpoint.files.items():
                entries[file_name] = self._store.put(path)
            self._check_copy(checkpoint, entries)
            return self._insert(checkpoint, new, entries)
        except BaseException:
            with suppress(LoraryError):  # the first error is the one to tell; what stays behind does no harm
                self._sweep(entries.values())
            raise

    def _check_copy(self, checkpoint: Checkpoint, entries: dict[str, FileEntry]) -> None:
        files = {name: self._store.path(entry.sha256) for name, entry in entries.items()}
        if read_checkpoint(files, shown=checkpoint.source).digest != checkpoint.digest:
            raise CheckpointError(f"{checkpoint.source}: changed while it was copied; register it when it is finished")

    def _insert(self, checkpoint: Checkpoint, new: NewVersion, entries: dict[str, FileEntry]) -> Version:
        with writing(self.path) as db:
            if known := registered(db, new):  # another process was quicker
                return known
            for file_name, entry in entries.items():
                # A removal elsewhere may have deleted an object that nothing referred to yet. Now it can't any more:
                # removals delete objects under the same lock.
                if not self._store.holds(entry) and self._store.put(checkpoint.files[file_name]) != entry:
                    raise CheckpointError(
                        f"{checkpoint.source}: {file_name} changed while it was registered; try again"
                    )
            located = (locate(db, parent, self.path) for parent in new.parents)
            return insert(db, new, entries, {version.reference: row_id for row_id, version in located})

    def resolve(self, reference: str) -> Version:
        """The version that ``name`` (its latest), ``name@3`` or ``name@alias`` names.

        Raises:
            InvalidReferenceError: not of that form.
            UnknownReferenceError: nothing is called that; the message offers what is near.
        """
        with reading(self.path) as db:
            return locate(db, reference, self.path)[1]

    def stamp(self) -> tuple[object, ...]:
        """A value that changes with every write to the catalogue, by whatever process; costs microseconds."""
        return change_stamp(self.path)

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or all of one name, ordered by name and number; empty when there are none."""
        return self._select([("a.name = ?", (name,))] if name is not None else [])

    def find(
        self,
        *,
        domain: str | None = None,
        task: str | None = None,
        base: str | None = None,
        method: str | None = None,
        tag: str | None = None,
        text: str | None = None,
    ) -> list[Version]:
        """The versions that fit every condition given, ordered by name and number.

        ``base`` is an id or a fingerprint; an id also finds what was trained on the same base under another id.
        ``text`` is words, each of which occurs in the name, domain, task, base, method, tags, aliases or labels.
        """
        conditions = conditions_for(domain=domain, task=task, base=base, method=method, tag=tag)
        words = (text or "").casefold().split()
        return [version for version in self._select(conditions) if mentions(version, words)]

    def _select(self, conditions: Collection[Condition]) -> list[Version]:
        where = " AND ".join(f"({condition})" for condition, _ in conditions) or "1"
        parameters = [value for _, values in conditions for value in values]
        with reading(self.path) as db:
            return list(select(db, where, parameters).values()) if db else []

    def best(
        self, *, metric: str, domain: str | None = None, task: str | None = None, base: str | None = None
    ) -> Version:
        """The version with the best ``metric`` on held-out rows among those that fit; the newer one of equals.

        Raises:
            UnknownReferenceError: no version fits, or none of them has the metric.
        """
        fitting = self.find(domain=domain, task=task, base=base)
        measured = [version for version in fitting if metric in version.metrics.get("test", {})]
        if not measured:
            names = sorted({name for version in fitting for name in version.metrics.get("test", {})})
            there = f"they have {', '.join(names)}" if names else "they have no metrics"
            what = f"none of {len(fitting)} fitting versions has it; {there}" if fitting else "no version fits"
            raise UnknownReferenceError(f"no best {metric!r} in {self.path}: {what}")
        sign = -1 if lower_is_better(metric) else 1
        return max(measured, key=lambda v: (sign * v.metrics["test"][metric], v.created_at, v.number))

    def checkpoint(self, version: Version | str) -> Checkpoint:
        """A version's checkpoint, its files being the store's objects.

        Raises:
            RegistryError: a file is missing from the store.
            CheckpointError: a file isn't what its name says.
        """
        return open_version(self._store, self.resolve(version) if isinstance(version, str) else version)

    def alias(self, name: str, alias: str, number: int, *, why: str | None = None) -> bool:
        """Let ``name@alias`` mean version ``number``, whatever it meant before; False where it means that already.

        The move is noted in the alias's history, with the reason.

        Raises:
            InvalidReferenceError: the alias can't be one.
            UsageError: the reason isn't a line of text.
            UnknownReferenceError: there is no such version.
        """
        check_name(alias, "alias")
        by = signature(why)
        reference = f"{check_name(name)}@{number}"
        self.resolve(reference)
        with writing(self.path) as db:
            row_id, _ = locate(db, reference, self.path)
            return set_alias(db, row_id, alias, by)

    def unalias(self, name: str, alias: str, *, why: str | None = None) -> None:
        """Take an alias away; the version stays, and so does the history.

        Raises:
            UnknownReferenceError: there is no such alias.
        """
        check_name(alias, "alias")
        by = signature(why)
        reference = f"{check_name(name)}@{alias}"
        self.resolve(reference)
        with writing(self.path) as db:
            row_id, _ = locate(db, reference, self.path)
            drop_aliases(db, row_id, (alias,), by)

    def rollback(self, name: str, alias: str, *, why: str | None = None) -> AliasMove:
        """Let ``name@alias`` mean what it meant before; again, and it goes further back.

        Each rollback takes back the last move that still stands, so two of them undo two moves. A meaning that was
        removed since is passed over for the one before it.

        Raises:
            UnknownReferenceError: there is no such name, or the alias has no history.
            RegistryConflictError: nothing that it meant before is still there.
        """
        check_name(alias, "alias")
        check_name(name)
        by = signature(why)
        self.alias_history(name)  # an unknown name makes no registry
        with writing(self.path) as db:
            return roll_back(db, name, alias, by, self.path)

    def alias_history(self, name: str, alias: str | None = None) -> list[AliasMove]:
        """All moves of a name's aliases, or of one of them, oldest first.

        Raises:
            UnknownReferenceError: there is no such name.
        """
        with reading(self.path) as db:
            if db is None:
                locate(db, check_name(name), self.path)
            assert db is not None
            return history(db, adapter_of(db, check_name(name), self.path), name, alias)

    def tag(self, reference: str, *tags: str) -> None:
        """Add tags to a version; one that it has already is fine. Raises as :meth:`resolve` does."""
        self._changenormalise_tags(reference, "INSERT OR IGNORE INTO tags (version_id, tag) VALUES (?, ?)", tags)

    def untag(self, reference: str, *tags: str) -> None:
        """Take tags off a version; one that it hasn't is fine. Raises as :meth:`resolve` does."""
        self._changenormalise_tags(reference, "DELETE FROM tags WHERE version_id = ? AND tag = ?", tags)

    def _changenormalise_tags(self, reference: str, statement: str, tags: Iterable[str]) -> None:
        self.resolve(reference)  # an unknown reference makes no registry
        with writing(self.path) as db:
            row_id, _ = locate(db, reference, self.path)
            for tag in normalise_tags(tags):
                db.execute(statement, [row_id, tag])

    def remove(self, reference: str, *, force: bool = False, why: str | None = None) -> Version:
        """Remove a version and the files that no other version has; its number isn't given out again.

        Aliases that go with it by ``force`` leave a move in their history, with the reason.

        Raises:
            UsageError: a bare name that has several versions.
            RegistryConflictError: an alias or a version trained from it needs it, and ``force`` isn't set.
            UnknownReferenceError: there is no such version.
        """
        by = signature(why or f"{self.resolve(reference).reference} was removed")
        with writing(self.path) as db:
            row_id, version = locate(db, reference, self.path)
            same_name = select(db, "a.name = ?", [version.name])
            if len(same_name) > 1 and str(registry_reference(reference)) == version.name:
                raise UsageError(f"{reference!r} has {len(same_name)} versions; say which, such as {version.reference}")
            children = select(db, "v.id IN (SELECT version_id FROM parents WHERE parent_id = ?)", [row_id]).values()
            if (version.aliases or children) and not force:
                needed = [f"{version.name}@{alias}" for alias in version.aliases] + [c.reference for c in children]
                raise RegistryConflictError(
                    f"{version.reference} is needed by {', '.join(needed)}; move or remove these first, or force it"
                )
            drop_aliases(db, row_id, version.aliases, by)
            db.execute("DELETE FROM versions WHERE id = ?", [row_id])
        with suppress(LoraryError):  # the version is gone; a file that stays does no harm, and `verify` notes it
            self._sweep(version.files.values())
        return version

    def _sweep(self, entries: Iterable[FileEntry]) -> None:
        """Delete those objects that no version refers to, under the write lock: see :meth:`_insert`."""
        with writing(self.path) as db:
            for sha256 in {entry.sha256 for entry in entries}:
                if not db.execute("SELECT 1 FROM files WHERE sha256 = ?", [sha256]).fetchone():
                    self._store.delete(sha256)

    def verify(self, reference: str | None = None) -> list[Finding]:
        """Hash every file again and compare files, checkpoints and rows; of one version when a reference is given.

        Returns:
            What was found: nothing, or only notes, when all is well.

        Raises:
            UnknownReferenceError: there is no such version.
        """
        findings: list[Finding] = []
        with reading(self.path) as db:
            if reference is not None:
                versions = dict([locate(db, reference, self.path)])
            elif db is None:
                return []
            else:
                versions = select(db)
                findings += check_database(db)
        # Hashing may take minutes and holds no lock; what is removed meanwhile is no finding.
        hashed: dict[str, FileEntry] = {}
        for version in versions.values():
            findings += check_version(self._store, version, hashed)
        if reference is None:
            findings += check_leftovers(self._store, versions)
        if any(finding.reference for finding in findings):
            there = {version.reference for version in self.versions()}
            findings = [finding for finding in findings if finding.reference is None or finding.reference in there]
        if reference is None:
            findings += self.bases.verify()
        return findings
