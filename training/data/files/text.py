"""Reading running text: a file or a folder of files, cut into documents that are kept apart.

Files are read line by line, so that a byte that isn't text is named by its line, and no text is held twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lorary.hub.errors import DataError
from lorary.training.data.examples import Note
from lorary.training.data.files.contents import misnamed, not_text
from lorary.training.data.files.opening import open_content
from lorary.training.data.files.source import MOST_HASHES, Row, Source, hash_of_all, report
from lorary.training.recipe.corpus import text_files
from lorary.training.recipe.data_files import TEXT_SUFFIXES


def read_text(text: str, sample_by: str | None, note: Note, encoding: str = "utf-8") -> Source:
    """Read a text file, or all of a folder, as rows with the one column ``text``.

    Args:
        text: the path, as the user wrote it.
        sample_by: a document is a whole file (``document``), what stands between blank lines (``paragraph``) or a
            ``line``, in the words of the ``datasets`` library; by default a file of a folder, and a paragraph of a
            single file.
        note: is told of files that are left out.
        encoding: one whose line ends are ASCII's.

    Raises:
        DataError: a file that can't be read or isn't text in its encoding, by file and line; nothing but blank lines.
    """
    path = Path(text).expanduser()
    files = list(text_files(path)) if path.is_dir() else [path]
    unit = sample_by or ("document" if path.is_dir() and len(files) > 1 else "paragraph")
    if path.is_dir():
        _note_others(path, files, note)
    rows: list[Row] = []
    hashes: dict[str, str] = {}
    problems: list[str] = []
    for file in files:
        shown = f"{text.rstrip('/')}/{file.relative_to(path).as_posix()}" if path.is_dir() else text
        try:
            with open_content(file, shown) as (content, digest):
                rows += _DOCUMENTS[unit](_lines(content, encoding), shown)
            hashes[file.relative_to(path).as_posix() if path.is_dir() else file.name] = digest.hexdigest()
        except UnicodeError as error:
            problems.append(f"{shown}, {error}")
        except OSError as error:
            problems.append(f"{shown}: can't be read: {error.strerror or error}")
    if problems:
        raise report(text, problems)
    if not rows:
        raise DataError(text, ["holds no text but blank lines"])
    return Source(text, tuple(rows), hash_of_all(hashes), files=hashes if 1 < len(hashes) <= MOST_HASHES else None)


def _note_others(folder: Path, files: list[Path], note: Note) -> None:
    kept = set(files)
    others = [path for path in sorted(folder.rglob("*")) if path.is_file() and path not in kept]
    if others:
        note(
            f"{len(others)} files in {folder.name} were left out (first: {others[0].relative_to(folder).as_posix()}): "
            f"{' and '.join(TEXT_SUFFIXES)} files are its text, but for hidden ones and its README and licence"
        )


def _lines(content: BinaryIO, encoding: str) -> Iterator[tuple[int, str]]:
    """A text's lines without their ends, by number.

    Raises:
        UnicodeError: with the line and what to do.
    """
    done = 0
    for number, line in enumerate(content, start=1):
        if number == 1 and (kind := misnamed(line)):
            raise UnicodeError(f"line 1: not {encoding.upper()} text but {kind}")
        try:
            text = line.decode(encoding)
        except UnicodeError as error:
            raise UnicodeError(f"line {number}: {not_text(error, encoding, done)}") from error
        if "\0" in text:
            raise UnicodeError(f"line {number}: holds a NUL byte, so it isn't a text file")
        if number == 1:
            text = text.removeprefix("\ufeff")
        done += len(line)
        yield number, text.rstrip("\r\n")


Lines = Iterator[tuple[int, str]]


def _paragraphs(lines: Lines, shown: str) -> Iterator[Row]:
    start, block = 0, list[str]()
    for number, line in lines:
        if line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield Row({"text": "\n".join(block)}, f"{shown}, line {start}")
            block = []
    if block:
        yield Row({"text": "\n".join(block)}, f"{shown}, line {start}")


def _whole(lines: Lines, shown: str) -> Iterator[Row]:
    text = "\n".join(line for _, line in lines).strip("\n")
    if text.strip():
        yield Row({"text": text}, shown)


def _each(lines: Lines, shown: str) -> Iterator[Row]:
    for number, line in lines:
        if line.strip():
            yield Row({"text": line}, f"{shown}, line {number}")


_DOCUMENTS = {"document": _whole, "paragraph": _paragraphs, "line": _each}
