"""What a dataset's folder may hold that ``datasets`` would read otherwise than it is read here."""

from __future__ import annotations

from pathlib import Path

from lorary.hub.errors import DataError
from lorary.training.data.contents import read_content
from lorary.training.data.separated import has_bare_quotes
from lorary.training.recipe.corpus import visible_files


def check_folder(folder: Path, shown: str) -> None:
    """Look through a folder's files before ``datasets`` reads them.

    Raises:
        DataError: double quotes in a TSV file that are no quoting: rows between two of them would become one.
    """
    for path in visible_files(folder):
        name = f"{shown.rstrip('/')}/{path.relative_to(folder).as_posix()}"
        if path.suffix.lower() == ".tsv" and has_bare_quotes(read_content(path, name)):
            raise DataError(name, ["has double quotes that quote no cell, and a folder's would; name the file itself"])
