"""What a base can be asked for: the names and aliases in the catalogue that mean one of its versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lorary.hub.finding.search import known_fingerprints

if TYPE_CHECKING:
    from sqlite_utils import Database

_SHOWN = "v.number, v.digest, a.domain, a.task, v.created_at"


@dataclass(frozen=True)
class Offer:
    """A reference that can be asked for (``model``), and what is shown of the version that it means."""

    model: str
    reference: str
    digest: str
    domain: str
    task: str
    created_at: str


def offers(db: Database, base: str, fingerprint: str | None) -> list[Offer]:
    """What fits a base, by ``model``: each name, with its latest version, and each alias.

    Where a name's latest version is another base's, the latest that fits is there by its number. A version that carries
    a fingerprint fits by it, one that doesn't by its base's id.

    Args:
        db: the registry.
        base: the id of the base.
        fingerprint: its fingerprint; None is unknown, and then what its id stands for in the catalogue fits.
    """
    fits, parameters = _fitting(db, base, fingerprint)
    # A look at each name's last versions, rather than at all that fit: they are mostly many more.
    last = f"SELECT id FROM versions v WHERE v.adapter_id = a.id AND ({fits}) ORDER BY v.number DESC LIMIT 1"
    newest = "v.number = (SELECT max(number) FROM versions WHERE adapter_id = a.id)"
    by_name = f"SELECT a.name, {newest}, {_SHOWN} FROM adapters a CROSS JOIN versions v ON v.id = ({last})"
    by_alias = (
        f"SELECT a.name, l.name, {_SHOWN} FROM aliases l CROSS JOIN versions v ON v.id = l.version_id "
        f"CROSS JOIN adapters a ON a.id = v.adapter_id WHERE {fits}"
    )
    found = []
    for name, is_newest, number, *shown in db.execute(by_name, parameters):
        reference = f"{name}@{number}"
        found.append(Offer(str(name) if is_newest else reference, reference, *map(str, shown)))
    for name, alias, number, *shown in db.execute(by_alias, parameters):
        found.append(Offer(f"{name}@{alias}", f"{name}@{number}", *map(str, shown)))
    return sorted(found, key=lambda offer: offer.model)


def _fitting(db: Database, base: str, fingerprint: str | None) -> tuple[str, list[str]]:
    """A condition on a version ``v``, in which no index of its own is to be looked up, and its parameters."""
    if fingerprint is not None:
        return "+v.base_fingerprint = ? OR (+v.base_fingerprint IS NULL AND +v.base_id = ?)", [fingerprint, base]
    known = known_fingerprints(db, base)
    return f"+v.base_id = ? OR +v.base_fingerprint IN ({', '.join('?' * len(known))})", [base, *known]


def count_by_base(db: Database) -> dict[str, int]:
    """How many versions name each base by its id."""
    rows = db.execute("SELECT base_id, count(*) FROM versions WHERE base_id IS NOT NULL GROUP BY base_id")
    return {str(base): int(count) for base, count in rows}
