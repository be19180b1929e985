"""The part of the catalogue that says what it holds: versions, their numbers, digests and relatives."""

from __future__ import annotations

from pathlib import Path

from lorary.hub.finding.query import relatives
from lorary.hub.tables.database import reading
from lorary.hub.tables.lookup import WHOLE
from lorary.hub.tables.readable import as_bytes, demand_readable, select_each, texts
from lorary.hub.values import Unreadable, Version

_IN_ORDER = "FROM adapters a JOIN versions v ON v.adapter_id = a.id WHERE {} ORDER BY a.name, v.number"
_NUMBERED = _IN_ORDER.format(f"a.name = ? AND {WHOLE}")


class Held:
    """What :class:`lorary.hub.registry.Registry` is with regard to the versions as a whole."""

    path: Path

    def versions(self, name: str | None = None) -> list[Version]:
        """All versions, or all of one name, ordered by name and number; empty when there are none.

        Raises:
            RegistryError: the row of one of them is damaged; :meth:`each` has the others.
        """
        return list(map(demand_readable, self.each(name)))

    def each(self, name: str | None = None) -> list[Version | Unreadable]:
        """The same, with what is known of a version whose row is damaged in its place instead of an error."""
        return self._each("1") if name is None else self._each("a.name = ?", name)

    def _each(self, where: str, *parameters: str) -> list[Version | Unreadable]:
        with reading(self.path) as db:
            if db is None:
                return []
            ids = [int(row_id) for (row_id,) in db.execute(f"SELECT v.id {_IN_ORDER.format(where)}", parameters)]
            return list(select_each(db, ids))

    def numbers(self, name: str) -> list[int]:
        """The numbers of a name's versions, in order; empty when there are none."""
        return list(self.digests(name))

    def digests(self, name: str) -> dict[int, str]:
        """The digests of a name's versions by their numbers, in order; also of those whose rows are damaged."""
        with reading(self.path) as db:
            # As bytes, since a text that isn't UTF-8 would stop all of them.
            rows = db.execute(f"SELECT v.number, CAST(v.digest AS BLOB) {_NUMBERED}", [name]) if db else ()
            return {int(number): bytes(digest).decode(errors="replace") for number, digest in rows}

    def aliases(self, name: str) -> dict[str, int]:
        """What a name's aliases mean, by its versions' numbers; also of those whose rows are damaged."""
        query = f"SELECT {as_bytes('l.name')}, v.number FROM aliases l JOIN versions v ON v.id = l.version_id "
        query += f"JOIN adapters a ON a.id = v.adapter_id WHERE a.name = ? AND {WHOLE} ORDER BY 1"
        with reading(self.path) as db:
            rows = db.execute(query, [name]) if db else ()
            return {alias: int(number) for alias, number in texts(rows)}

    def with_digest(self, digest: str) -> list[Version]:
        """The versions of that digest, under whatever names, ordered by name and number.

        Raises:
            RegistryError: there are some, and the rows of all of them are damaged.
        """
        found = self._each("v.digest = ?", digest)
        return [one for one in found if isinstance(one, Version)] or list(map(demand_readable, found))

    def relatives(self, version: Version) -> list[Version | Unreadable]:
        """A version, all that it was trained from and all that was trained from it, by name and number.

        Those whose rows are damaged come last, as what is known of them.

        Raises:
            UnknownReferenceError: it is no longer there.
        """
        with reading(self.path) as db:
            return relatives(db, version.reference, self.path) if db else []
