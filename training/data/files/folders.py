"""What a dataset's folder may hold that ``datasets`` reads otherwise than it is read here, or without a clear error."""

from __future__ import annotations

from pathlib import Path

from lorary.hub.errors import DataError
from lorary.training.data.files.opening import read_content
from lorary.training.data.files.separated import has_bare_quotes, has_semicolons, naming_line
from lorary.training.recipe.corpus import visible_files
from lorary.training.recipe.data_files import DATA_SUFFIXES, is_gzip, kind_of
from lorary.training.recipe.raw import shown as shown_value

_HEADER = 2**16  # bytes that hold a file's first line


def check_folder(folder: Path, shown: str) -> None:
    """Look through a folder's files before ``datasets`` reads them.

    Raises:
        DataError: a compressed file that isn't whole, or of a kind that ``datasets`` doesn't unpack; double quotes in a
            TSV file that are no quoting, so that rows between two of them would become one; a CSV file with semicolons,
            whose rows would be one cell each, or whose first line names what stands between its cells.
    """
    for path in visible_files(folder):
        name, kind, gzip = f"{shown.rstrip('/')}/{path.relative_to(folder).as_posix()}", kind_of(path), is_gzip(path)
        if gzip and kind == ".parquet":
            raise DataError(
                name, ["is compressed, and a folder's Parquet isn't unpacked; name the file itself, or unpack it"]
            )
        if kind == ".tsv" or (gzip and kind in DATA_SUFFIXES):
            content, _ = read_content(path, name)
            if kind == ".tsv" and has_bare_quotes(content):
                raise DataError(
                    name, ["has double quotes that quote no cell, and a folder's would; name the file itself"]
                )
        if kind == ".csv":
            head, _ = read_content(path, name, _HEADER)
            text = head.decode("utf-8-sig", "ignore")
            if line := naming_line(text):
                taken = f"begins with {shown_value(line)}, which a folder's would take for its header"
                raise DataError(name, [f"{taken}; name the file itself"])
            if has_semicolons(text):
                raise DataError(
                    name, ["has semicolons between its cells, and a folder's have commas; name the file itself"]
                )
