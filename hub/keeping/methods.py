"""The part of the catalogue that keeps: aliases and their history, tags, removing, deleting leftovers, verifying."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from lorary.hub.errors import LoraryError
from lorary.hub.files.store import Store
from lorary.hub.finding.search import normalise_tags
from lorary.hub.keeping.aliases import adapter_of, drop_aliases, history, roll_back, set_alias, signature
from lorary.hub.keeping.collection import collect
from lorary.hub.keeping.promotion import promote
from lorary.hub.keeping.removal import remove_rows, sweep
from lorary.hub.keeping.verification import verify
from lorary.hub.reference import check_name
from lorary.hub.tables.database import reading, writing
from lorary.hub.tables.lookup import locate, locate_id
from lorary.hub.values import AliasMove, Collected, Finding, Promotion, Unreadable, Version


class Keeping:
    """What :class:`lorary.hub.registry.Registry` is with regard to what it holds already."""

    path: Path
    _store: Store

    def resolve(self, reference: str) -> Version:
        """The version that ``name`` (its latest), ``name@3`` or ``name@alias`` names.

        Raises:
            InvalidReferenceError: not of that form.
            UnknownReferenceError: nothing is called that; the message offers what is near.
        """
        with reading(self.path) as db:
            return locate(db, reference, self.path)[1]

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
        by = signature(why)
        self.alias_history(name)  # what can't be a name is refused, and an unknown one makes no registry
        with writing(self.path) as db:
            return roll_back(db, name, alias, by, self.path)

    def promote(
        self, reference: str, alias: str, *, require: Iterable[str] = (), why: str | None = None, dry_run: bool = False
    ) -> Promotion:
        """Let an alias of its name mean the version ``reference``, if that version meets every requirement.

        Args:
            reference: the version, such as ``finance-tone@candidate``.
            alias: the alias to move, such as ``prod``.
            require: ``verify`` (the files are hashed again), or a metric on held-out rows compared with a number
                (``accuracy>=0.9``) or with another version's (``f1>=prod+0.01``; of the same name, or ``name@alias``).
                A comparison with ``alias`` itself holds where that means nothing yet.
            why: the reason, for the history; by default the requirements.
            dry_run: only say how it would go.

        Raises:
            PromotionRefusedError: a requirement isn't met; all that aren't are told.
            UsageError: a requirement or the reason can't be one.
            UnknownReferenceError: there is no such version.
            RegistryConflictError: ``reference`` has come to mean another version meanwhile.
        """
        return promote(self, reference, alias, require, why, dry_run)

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

    def remove(self, reference: str, *, force: bool = False, why: str | None = None) -> Version | Unreadable:
        """Remove a version and the files that no other version has; its number isn't given out again.

        Aliases that go with it by ``force`` leave a move in their history, with the reason. Of one whose row is damaged
        what is known is returned.

        Raises:
            UsageError: a bare name that has several versions, or the reason isn't a line of text.
            RegistryConflictError: an alias or a version trained from it needs it, and ``force`` isn't set.
            UnknownReferenceError: there is no such version.
        """
        with reading(self.path) as db:
            locate_id(db, reference, self.path)  # an unknown reference makes no registry
        with writing(self.path) as db:
            version, objects = remove_rows(db, reference, self.path, why, force=force)
        with suppress(LoraryError):  # the version is gone; a file that stays does no harm, and `verify` notes it
            sweep(self.path, self._store, objects)
        return version

    def tag(self, reference: str, *tags: str) -> None:
        """Add tags to a version; one that it has already is fine. Raises as :meth:`resolve` does."""
        self._change_tags(reference, "INSERT OR IGNORE INTO tags (version_id, tag) VALUES (?, ?)", tags)

    def untag(self, reference: str, *tags: str) -> None:
        """Take tags off a version; one that it hasn't is fine. Raises as :meth:`resolve` does."""
        self._change_tags(reference, "DELETE FROM tags WHERE version_id = ? AND tag = ?", tags)

    def _change_tags(self, reference: str, statement: str, tags: Iterable[str]) -> None:
        self.resolve(reference)  # an unknown reference makes no registry
        with writing(self.path) as db:
            row_id, _ = locate(db, reference, self.path)
            for tag in normalise_tags(tags):
                db.execute(statement, [row_id, tag])

    def collect(self, *, dry_run: bool = False) -> Collected:
        """Delete what commands that were broken off have left in the store; ``dry_run`` only counts it.

        Raises:
            UnknownReferenceError: there is no registry, so nothing says what is needed.
        """
        return collect(self.path, self._store, dry_run=dry_run)

    def verify(self, reference: str | None = None) -> list[Finding]:
        """Hash every file again and compare files, checkpoints and rows; of one version when a reference is given.

        Returns:
            What was found: nothing, or only notes, when all is well.

        Raises:
            UnknownReferenceError: there is no such version.
        """
        return verify(self.path, self._store, reference)
