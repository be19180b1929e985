"""Texts in folders that are called by their labels: ``pos/12_9.txt``, as IMDB's reviews are."""

from __future__ import annotations

from dataclasses import replace

from lorary.hub.errors import DataError
from lorary.training.data.examples import Note
from lorary.training.data.files.source import Row, Source
from lorary.training.data.files.text import read_text
from lorary.training.recipe.raw import some
from lorary.training.recipe.sections import Columns

_SPLITS = frozenset({"train", "test", "dev", "val", "valid", "validation"})


def read_class_folders(folder: str, columns: Columns, encoding: str, note: Note) -> Source:
    """Read each text file below a folder as a row, with the name of the folder at its top that it is in.

    Args:
        folder: the path, as the user wrote it.
        columns: what the rows' columns are called.
        encoding: that of the files.
        note: is told of the labels, and of text files that are in no such folder.

    Raises:
        DataError: as :func:`read_text`, or the folders at its top aren't those of labels.
    """
    text, label = columns.text or "text", columns.label or "label"
    source = read_text(folder, "document", note, encoding)
    rows = tuple(
        Row({text: row.values["text"], label: name}, row.place)
        for row in source.rows
        if (name := _folder_of(row.place.removeprefix(f"{folder.rstrip('/')}/")))
    )
    if not rows:
        expected = "expected those, or the name of one file whose lines begin with their labels"
        raise DataError(folder, [f"has text files, and no folder for each label with its texts; {expected}"])
    names = sorted({row.values[label] for row in rows})
    if _SPLITS.issuperset(names):
        raise DataError(folder, [f"its folders ({some(names)}) are no labels but splits; name {folder}/{names[-1]}"])
    note(f"the labels are the names of folders: {some(names)}")
    if beside := len(source.rows) - len(rows):
        note(f"{beside} text files of {folder} are in none of these folders, and aren't read")
    return replace(source, rows=rows)


def _folder_of(path: str) -> str:
    return path.partition("/")[0] if "/" in path else ""
