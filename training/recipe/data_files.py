"""The data files that can be read, by how their names end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

DATA_SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".conll", ".label")
"""Files of rows; what isn't a data file is a dataset's folder or an id on the Hub."""

TEXT_SUFFIXES = (".txt", ".md")
"""The files that are read as running text."""

LABELLED_LINES = (".label", ".txt")
"""What text classification reads as lines that begin with their labels."""

GZIP = ".gz"
"""Stands behind any of these where a file is compressed."""

# Not a dataset id, whatever the Hub would allow.
_COMPRESSED = frozenset({".zip", ".7z", ".bz2", ".xz", ".zst", ".lz4"})
_OTHERS = frozenset({".xlsx", ".xls", ".xml", ".arrow", ".tar", GZIP})


def is_gzip(path: Path) -> bool:
    """Is this file compressed with gzip, by its name?"""
    return path.suffix.lower() == GZIP


def without_gzip(path: Path) -> Path:
    """A file's path as it would be without compression."""
    return path.with_suffix("") if is_gzip(path) else path


def kind_of(path: Path) -> str:
    """The suffix that says what a file holds, in small letters; that before ``.gz`` where it is compressed."""
    return without_gzip(path).suffix.lower()


def is_data_file(text: str) -> bool:
    """Is ``text`` meant as a file or folder, rather than as a dataset id on the Hub?"""
    path = Path(text)
    named = kind_of(path) in (*DATA_SUFFIXES, *TEXT_SUFFIXES)
    return named or text.startswith(("./", "../", "/", "~")) or path.exists()


def refusal(text: str, read: Sequence[str] = DATA_SUFFIXES) -> str | None:
    """Why a file isn't read, and how to mend that; None for one that is, and for a folder or a dataset id.

    Args:
        text: its path, as the user wrote it.
        read: the kinds of files that are read here.
    """
    path = Path(text).expanduser()
    suffix = path.suffix.lower()
    if kind_of(path) in read or not (suffix in _COMPRESSED | _OTHERS or path.is_file()):
        return None
    if suffix in _COMPRESSED:
        return f"{text!r} is compressed in a way that isn't read; compress it with gzip ({GZIP}), or unpack it"
    if is_gzip(path) and not kind_of(path):
        return f"{text!r} doesn't say what it holds; expected a name such as {path.stem}{read[0]}{GZIP}"
    return f"{text!r} isn't one of {', '.join(read)}; convert it to one of them"
