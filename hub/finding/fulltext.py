"""Full-text search over the catalogue: keeping its index true, and turning what a person types into a query.

The index is the FTS5 table ``search`` (https://www.sqlite.org/fts5.html), one row for each version.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from lorary.hub.errors import RegistryError, UsageError

if TYPE_CHECKING:
    from sqlite_utils import Database

_MOST_WORDS = 32  # FTS5 refuses very deep expressions
_MOST_BASES = 64
_INSIDE = 3  # letters from which on a word is also looked for inside the ids of bases

_COLUMNS = "name, domain, task, base, method, strategy, tags, aliases, labels"


def pending(db: Database) -> bool:
    """True when rows were changed by another program, and the index doesn't know yet."""
    return db.execute("SELECT 1 FROM search_pending LIMIT 1").fetchone() is not None


def catch_up(path: Path) -> None:
    """Bring the index up to date with what other programs have changed, where the registry can be written."""
    from lorary.hub.tables.database import reading, writing

    with reading(path) as db:
        behind = db is not None and pending(db)
    if behind:
        with suppress(RegistryError), writing(path):  # the commit does it
            pass


def refresh(db: Database) -> None:
    """Bring the index up to date with what the transaction has changed so far."""
    if not pending(db):
        return
    db.execute("DELETE FROM search WHERE rowid IN (SELECT version_id FROM search_pending)")
    db.execute(
        f"INSERT INTO search (rowid, {_COLUMNS}) SELECT version_id, {_COLUMNS} FROM search_text "
        "WHERE version_id IN (SELECT version_id FROM search_pending)"
    )
    db.execute("DELETE FROM search_pending")


def count_stale(db: Database) -> int:
    """How many versions the index has other words for than their rows, or none, or too many; 0 when all is well."""
    pending = "(SELECT version_id FROM search_pending)"
    index = f"SELECT rowid AS id, {_COLUMNS} FROM search WHERE rowid NOT IN {pending}"
    rows = f"SELECT version_id AS id, {_COLUMNS} FROM search_text WHERE version_id NOT IN {pending}"
    both = f"SELECT * FROM ({index} EXCEPT {rows}) UNION ALL SELECT * FROM ({rows} EXCEPT {index})"
    return int(db.execute(f"SELECT count(DISTINCT id) FROM ({both})").fetchone()[0])


def match_expression(db: Database, text: str) -> str | None:
    """The FTS5 expression for words each of which begins a word of the version's row; None when nothing can match.

    Every word is quoted, so that no sign of FTS5's syntax counts. Inside a base's id a word may also stand in the
    middle, so that ``llama`` finds ``TinyLlama``.

    Raises:
        UsageError: too many words.
    """
    words = text.encode("utf-8", "replace").decode().replace("\0", " ").split()
    if len(words) > _MOST_WORDS:
        raise UsageError(f"the search has {len(words)} words; expected at most {_MOST_WORDS}")
    if not words or not all(any(sign.isalnum() for sign in word) for word in words):
        return None
    parts = []
    for word in words:
        inside = [f"base : {_quoted(base)}" for base in _bases_with(db, word)]
        parts.append(f"({' OR '.join([f'{_quoted(word)} *', *inside])})")
    return " AND ".join(parts)


def _quoted(word: str) -> str:
    return '"' + word.replace('"', '""') + '"'


def _bases_with(db: Database, word: str) -> list[str]:
    if len(word) < _INSIDE:
        return []
    # Steps from one base to the next in the index instead of reading every version's.
    rows = db.execute(
        "WITH RECURSIVE one (base) AS (SELECT min(base_id) FROM versions UNION ALL "
        "SELECT (SELECT min(base_id) FROM versions WHERE base_id > one.base) FROM one WHERE one.base IS NOT NULL) "
        "SELECT base FROM one WHERE instr(lower(base), lower(?)) LIMIT ?",
        [word, _MOST_BASES],
    )
    return [str(base) for (base,) in rows if any(sign.isalnum() for sign in str(base))]
