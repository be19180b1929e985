"""The catalogue of adapters: one SQLite file, and beside it the files of all versions."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.errors import CheckpointError, RegistryError
from lorary.hub.files.staging import Staging
from lorary.hub.files.store import Store
from lorary.hub.finding.choice import Choice, choose_best
from lorary.hub.finding.fulltext import catch_up
from lorary.hub.finding.offers import Offer, count_by_base, offers
from lorary.hub.finding.overview import Cell, overview
from lorary.hub.finding.query import FoundVersions, find_versions, select_in_order
from lorary.hub.finding.search import Filter, known_fingerprints, normalise_tags
from lorary.hub.keeping.aliases import Naming, name_version, signature
from lorary.hub.keeping.methods import Keeping
from lorary.hub.keeping.verification import open_version
from lorary.hub.pretrained_bases import Bases
from lorary.hub.provenance.cleaning import cleaned
from lorary.hub.provenance.private import own_folder
from lorary.hub.reference import check_name
from lorary.hub.registry_path import registry_path
from lorary.hub.tables.catalogue import choose_domain, choose_task, describe, named_base
from lorary.hub.tables.database import change_stamp, demand_writable, reading, writing
from lorary.hub.tables.held import Held
from lorary.hub.tables.insertion import Metrics, NewVersion, check_metrics, check_time, insert, registered
from lorary.hub.tables.lookup import locate
from lorary.hub.values import FileEntry, Version


class Registry(Held, Keeping):
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
        self.path = registry_path(path)
        try:
            # Path.exists and Path.resolve say nothing of a circle of links in some versions of Python.
            with suppress(FileNotFoundError, NotADirectoryError):
                self.path.stat()
            real = self.path.resolve()
        except OSError as error:  # too long, a circle of links, behind a folder that can't be entered
            shown = text if len(text := str(self.path)) < 200 else f"{text[:200]}..."
            why = "its links lead in a circle" if error.errno == errno.ELOOP else error.strerror
            raise RegistryError(f"{shown}: can't be a registry's path ({why}); name another one") from error
        if not real.name:
            raise RegistryError(f"{real}: is a folder, and so no registry; name a file")
        # SQLite follows a link to the database; its files are beside the database itself.
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
        absent_parents: Iterable[str] = (),
        strategy: str = "import",
        base_folder: str | Path | None = None,
        created_at: str | None = None,
        aliases: Iterable[str] = (),
        only_free: bool = False,
        why: str | None = None,
    ) -> Version:
        """Register a checkpoint as the next version of ``name``, with a copy of its files.

        When the name has a version with the same digest, that one is returned and nothing but aliases changes. Secrets
        and home folders in the files' texts don't go into the copies (:mod:`lorary.hub.provenance.private`).

        Args:
            source: a folder written by PEFT's ``save_pretrained``, or what ``read_checkpoint`` made of it.
            name: lower-case letters, digits, ``.``, ``_`` and ``-``.
            domain: the subject matter; by default the manifest's.
            task: a Hugging Face pipeline tag; by default what the checkpoint says.
            metrics: numbers by split and name, see :class:`Version`.
            tags: words to find it by.
            parents: references of the versions it was trained from.
            absent_parents: the same for versions that aren't in this registry: where they are, kept as text.
            strategy: how it was trained.
            base_folder: where its base is on this machine; by default the folder that the source names, if it is there.
                Kept in the catalogue alone, under the fingerprint that the manifest has of the base, so that the base
                is found again; without a fingerprint it isn't kept.
            created_at: when it was first registered elsewhere, ISO 8601 with a time zone; by default now.
            aliases: let these mean the version, in the same transaction.
            only_free: leave aliases alone that mean another version.
            why: the reason, for the aliases' history.

        Raises:
            CheckpointError: the source can't be read as a checkpoint.
            UsageError: a name, a metric or a tag that can't be one, or neither the source nor the caller says the task.
            InvalidReferenceError: the name or an alias can't be one.
            RegistryConflictError: the name stands for another domain or task.
            UnknownReferenceError: a parent that isn't there.
        """
        check_name(name)
        naming = Naming(tuple(check_name(alias, "alias") for alias in aliases), signature(why), only_free)
        given = source if isinstance(source, Checkpoint) else read_checkpoint(source)
        with cleaned(given) as checkpoint:
            new = NewVersion(
                name=name,
                domain=choose_domain(checkpoint, domain),
                task=choose_task(checkpoint, task),
                description=describe(checkpoint),
                base_commit=checkpoint.manifest.base.commit if checkpoint.manifest else None,
                labels=(checkpoint.manifest.labels if checkpoint.manifest else None) or (),
                metrics=check_metrics(metrics),
                tags=normalise_tags(tags),
                parents=tuple(parents),
                absent_parents=tuple(absent_parents),
                strategy=strategy,
                base_folder=own_folder(base_folder or named_base(given)),
                created_at=check_time(created_at),
            )
            return self._register(checkpoint, new, naming)

    def _register(self, checkpoint: Checkpoint, new: NewVersion, naming: Naming) -> Version:
        # Before anything is copied: can this registry be written, and is there anything to do? It isn't made for that:
        # an import that fails leaves none behind.
        demand_writable(self.path)
        with reading(self.path) as db:
            for parent in new.parents:
                locate(db, parent, self.path)
            known = registered(db, new) if db else None
        if known:
            return self._name(known, naming)
        with self._store.staging() as staging:
            entries = {file_name: staging.put(path) for file_name, path in checkpoint.files.items()}
            self._check_copy(checkpoint, {name: staging.files[entry.sha256] for name, entry in entries.items()})
            return self._insert(new, entries, staging, naming)

    def _check_copy(self, checkpoint: Checkpoint, copies: Mapping[str, Path]) -> None:
        if read_checkpoint(copies, shown=checkpoint.source).digest != checkpoint.digest:
            raise CheckpointError(f"{checkpoint.source}: changed while it was copied; register it when it is finished")

    def _insert(self, new: NewVersion, entries: Mapping[str, FileEntry], staging: Staging, naming: Naming) -> Version:
        with writing(self.path) as db:
            version = registered(db, new)
            if version is None:  # else another process was quicker
                located = (locate(db, parent, self.path) for parent in new.parents)
                version = insert(db, new, entries, {version.reference: row_id for row_id, version in located})
                self._store.publish(staging)
            return name_version(db, version, naming, self.path)

    def _name(self, version: Version, naming: Naming) -> Version:
        if set(naming.aliases) <= set(version.aliases):
            return version
        with writing(self.path) as db:
            return name_version(db, version, naming, self.path)

    def stamp(self) -> tuple[object, ...]:
        """A value that changes with every write to the catalogue, by whatever process; costs microseconds."""
        return change_stamp(self.path)

    def find(
        self,
        *,
        domain: str | None = None,
        task: str | None = None,
        base: str | None = None,
        method: str | None = None,
        strategy: str | None = None,
        tag: str | None = None,
        alias: str | None = None,
        text: str | None = None,
        where: Iterable[str] = (),
        ancestor: str | None = None,
        sort: str = "name",
        reverse: bool = False,
        limit: int | None = None,
    ) -> list[Version]:
        """The versions that fit every condition given, ordered by name and number or as asked.

        Args:
            domain: the subject matter.
            task: a pipeline tag.
            base: an id, a fingerprint or a folder that the catalogue knows; also finds the same base under other ids.
            method: ``lora``, ``qlora``, ``dora``, ...
            strategy: how it came to be: ``fine-tune``, ``continual``, ``intermediate``, ``blend``, ``import``.
            tag: one of its tags.
            alias: one of its aliases.
            text: words, each of which begins a word of the name, domain, task, base, method, strategy, tags, aliases or
                labels; it may also stand inside the base's id.
            where: comparisons such as ``f1>=0.9``: of metrics on held-out rows, or version, rank, parameters and size.
            ancestor: the reference of a version that it was trained from, directly or over others.
            sort: a metric, best first, or one of :data:`lorary.hub.finding.query.COLUMNS`.
            reverse: the other way round.
            limit: at most so many; None means all.

        Raises:
            UsageError: a condition or an order that can't be one.
            UnknownReferenceError: the ancestor isn't there, or a metric that no version has.
        """
        wanted = Filter(
            domain=domain, task=task, base=base, method=method, strategy=strategy, tag=tag, alias=alias, text=text,
            where=tuple(where), ancestor=ancestor,
        )  # fmt: skip
        if wanted.text:
            catch_up(self.path)
        with reading(self.path) as db:  # all of them as they are at one moment
            page = find_versions(db, wanted, self.path, sort=sort, reverse=reverse, limit=limit)
            return list(select_in_order(db, page.ids)) if db else []

    def search(
        self, wanted: Filter, *, sort: str = "name", reverse: bool = False, limit: int | None = None
    ) -> FoundVersions:
        """As :meth:`find`, and how many there are without the limit; for as many versions as memory wouldn't hold."""
        if wanted.text:
            catch_up(self.path)
        with reading(self.path) as db:
            page = find_versions(db, wanted, self.path, sort=sort, reverse=reverse, limit=limit)
        return FoundVersions(self.path, page)

    def fingerprints(self, base: str) -> list[str]:
        """The fingerprints that a base's id or folder stands for in the catalogue; of a fingerprint, itself."""
        with reading(self.path) as db:
            return known_fingerprints(db, base) if db else []

    def count_by_base(self) -> dict[str, int]:
        """How many versions name each base by its id."""
        with reading(self.path) as db:
            return count_by_base(db) if db else {}

    def offers(self, base: str, fingerprint: str | None) -> list[Offer]:
        """What a base (its id, and its fingerprint, None: unknown) can be asked for: names and aliases.

        Where a name's latest version is another base's, the latest that fits is there by its number.
        """
        with reading(self.path) as db:
            return offers(db, base, fingerprint) if db else []

    def overview(self, metric: str | None = None) -> list[Cell]:
        """How much there is of each domain and task, and the best value of ``metric`` or of the most telling one.

        Raises:
            UnknownReferenceError: no version has the metric.
        """
        with reading(self.path) as db:
            return overview(db, metric) if db else []

    def best(
        self, *, metric: str | None = None, domain: str | None = None, task: str | None = None, base: str | None = None
    ) -> Version:
        """The version with the best ``metric`` on held-out rows among those that fit; the newer one of equals.

        Without a metric it is the one that tables show for what fits, which must then be of one task.
        ``base`` is as for :meth:`find`. What carries that base's fingerprint is compatible; what names it by its id
        and carries none is taken only where nothing else fits, and has ``base_fingerprint`` None.

        Raises:
            UnknownReferenceError: no version fits, or none of them has the metric.
            UsageError: no metric is given, and what fits is of several tasks.
        """
        return self.choose(Filter(domain=domain, task=task, base=base), metric=metric).version

    def choose(self, wanted: Filter, *, metric: str | None = None) -> Choice:
        """As :meth:`best` under any conditions, with what is to be said about the choice."""
        if wanted.text:
            catch_up(self.path)
        with reading(self.path) as db:
            return choose_best(db, wanted, metric, self.path)

    def checkpoint(self, version: Version | str) -> Checkpoint:
        """A version's checkpoint, its files being the store's objects.

        Raises:
            UnknownReferenceError: there is no such version.
            RegistryError: a file is missing from the store.
            CheckpointError: a file isn't what its name says.
        """
        return open_version(self._store, self.resolve(version) if isinstance(version, str) else version)
