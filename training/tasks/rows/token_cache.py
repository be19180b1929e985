"""Token ids that earlier runs made, on disk: a row is tokenized once for each tokenizer and way of putting it.

Rows are found by their content, one by one, so that other splits, seeds, folds, parts of the rows and files to which
rows were added find theirs again. What is kept is a table of Apache Arrow, named by the hash of its bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from lorary.hub.errors import UsageError
from lorary.hub.files.user_cache import cache_folder

Record = dict[str, Any]

FEWEST = 256
"""Rows that were missing, from which on they are written: fewer are tokenized before a file is written."""
LIMIT = 4 * 10**9
_DAY = 86400.0  # seconds
_ROW, _RECORD = "row", "record"


class TokenCache:
    """Tables of tokenized rows in a folder for each way of making them; the longest unused go first beyond ``limit``.

    Args:
        folder: is made when there is something to keep; only its owner can read it.
        limit: bytes of all tables together.
        note: is told once where the folder can't be written.
    """

    def __init__(self, folder: Path, limit: int = LIMIT, note: Callable[[str], None] = lambda line: None) -> None:
        self.folder, self.limit, self._note = folder, limit, note
        self._expected: Iterable[bytes] = ()
        self._held: dict[str, dict[bytes, Record]] = {}  # of the expected rows, by key

    @classmethod
    def default(cls, note: Callable[[str], None]) -> TokenCache | None:
        """The user's, as ``LORARY_TOKEN_CACHE`` (a folder, or ``off``) and ``LORARY_TOKEN_CACHE_GB`` say.

        Raises:
            UsageError: the limit is no number.
        """
        place = os.environ.get("LORARY_TOKEN_CACHE", "")
        limit = os.environ.get("LORARY_TOKEN_CACHE_GB", "")
        try:
            most = int(float(limit) * 10**9) if limit else LIMIT
        except (ValueError, OverflowError) as error:
            raise UsageError(f"LORARY_TOKEN_CACHE_GB={limit!r}: expected a number of gigabytes, such as 4") from error
        if place.lower() == "off" or most <= 0:
            return None
        folder = Path(place).expanduser() if place else cache_folder("tokens")
        return None if folder is None else cls(folder, most, note)

    @staticmethod
    def key(settings: Mapping[str, Any], tokenizer: Any) -> str | None:
        """What names a way of making token ids: the settings, the tokenizer, and the code; None where it has no name.

        A slow tokenizer is code of its own, which can't be told from another by what it holds.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        # Left over from the last call, and set anew by each one.
        backend.no_truncation()
        backend.no_padding()
        told = {
            "settings": settings,
            "tokenizer": hashlib.sha256(backend.to_str().encode()).hexdigest(),
            "class": type(tokenizer).__name__,
            "special": {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())},
            "arguments": _arguments(tokenizer),
            "sides": [tokenizer.padding_side, tokenizer.truncation_side],
            "inputs": list(tokenizer.model_input_names),
            "template": tokenizer.chat_template,
            "code": _code(),
        }
        return hashlib.sha256(json.dumps(told, sort_keys=True, default=repr).encode()).hexdigest()

    def rows(
        self, key: str, digests: Sequence[bytes], make: Callable[[Sequence[int]], Sequence[Record]]
    ) -> list[Record]:
        """The record of each row; ``make`` is called once with the places of those that no table has.

        Args:
            digests: the rows' contents, 32 bytes each.
            make: returns plain values, the same keys in each record.
        """
        found = self._found(key, digests)
        missing = [place for place, digest in enumerate(digests) if digest not in found]
        made = make(missing) if missing else []
        if len(missing) >= FEWEST:
            self._write(self.folder / key, [digests[place] for place in missing], made)
        found.update(zip((digests[place] for place in missing), made, strict=True))
        return [found[digest] for digest in digests]

    def expect(self, digests: Iterable[bytes]) -> None:
        """All rows that will be asked for, part by part, so that a table is read once. Gone through at the first."""
        self._expected, self._held = digests, {}

    def _found(self, key: str, digests: Sequence[bytes]) -> dict[bytes, Record]:
        self._expected = expected = frozenset(self._expected)
        if not expected.issuperset(digests):
            return self._read(self.folder / key, digests)
        if key not in self._held:
            self._held[key] = self._read(self.folder / key, expected)
        return self._held[key]

    def _read(self, folder: Path, digests: Iterable[bytes]) -> dict[bytes, Record]:
        wanted = set(digests)
        found: dict[bytes, Record] = {}
        for path in sorted(folder.glob("*.arrow")):
            if not wanted:
                break
            table = _table(path)
            if table is None:
                continue
            rows = table.column(_ROW).to_pylist()
            here = [index for index, digest in enumerate(rows) if digest in wanted]
            records = _plain(table.column(_RECORD).take(pa.array(here, pa.int64())))
            found.update(zip((rows[index] for index in here), records, strict=True))
            wanted -= found.keys()
            if here:
                with suppress(OSError):
                    os.utime(path)
        return found

    def _write(self, folder: Path, digests: Sequence[bytes], records: Sequence[Record]) -> None:
        """Write a table whole or not at all; a row that doesn't come back as it was isn't worth a table."""
        try:
            table = pa.table({_ROW: pa.array(list(digests), pa.binary(32)), _RECORD: pa.array(list(records))})
        except (pa.ArrowException, OverflowError):
            return
        if _plain(table.column(_RECORD)) != list(records):
            return
        content = _bytes(table)
        draft = folder / f".{secrets.token_hex(8)}"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            draft.write_bytes(content)
            draft.replace(folder / f"{hashlib.sha256(content).hexdigest()}.arrow")
        except OSError as error:
            with suppress(OSError):
                draft.unlink()
            self._note(f"{self.folder}: token ids can't be kept for the next run ({error.strerror or error})")
            return
        self._trim()

    def _trim(self) -> None:
        """Remove what was unused the longest until the rest is within the limit; somebody else may do so too."""
        for path in self.folder.glob("*/.*"):  # a killed process's
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _DAY:
                    path.unlink()
        kept: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("*/*.arrow"):
            with suppress(OSError):
                facts = path.stat()
                kept.append((facts.st_mtime, facts.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self.limit:
                return
            with suppress(OSError):
                path.unlink()
                total -= size
                path.parent.rmdir()  # refused while it holds another


def _plain(column: Any) -> list[Any]:
    """A column's values. A list's own values are made plain all at once: ``to_pylist`` takes them one by one."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if array.null_count:
        return list(array.to_pylist())
    if pa.types.is_struct(array.type):
        names = [field.name for field in array.type]
        values = (_plain(array.field(name)) for name in names)
        return [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
    if pa.types.is_list(array.type):
        flat, ends = _plain(array.values), array.offsets.to_pylist()
        return [flat[start:end] for start, end in pairwise(ends)]
    return list(array.to_pylist() if pa.types.is_null(array.type) else array.to_numpy(zero_copy_only=False).tolist())


def _bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _table(path: Path) -> pa.Table | None:
    """A table whose bytes are those that its name tells; any other file is removed, and its rows are made anew."""
    try:
        content = path.read_bytes()
    except OSError:
        return None  # another process has removed it
    if hashlib.sha256(content).hexdigest() == path.stem:
        with pa.ipc.open_stream(content) as reader:
            return reader.read_all()
    with suppress(OSError):
        path.unlink()
    return None


def _arguments(tokenizer: Any) -> dict[str, Any]:
    """What a tokenizer was made with, as it is now: some of it acts outside its backend. Not where its files are."""
    made = {name: value for name, value in tokenizer.init_kwargs.items() if not name.startswith("_")}
    names = {name for name in _ACTING | made.keys() if not name.endswith("_file")} - _PLACES
    return {name: getattr(tokenizer, name, made.get(name)) for name in names}


_ACTING = frozenset({
    "split_special_tokens", "add_bos_token", "add_eos_token", "add_prefix_space", "legacy", "legacy_behaviour",
    "src_lang", "tgt_lang",
})  # fmt: skip
_PLACES = frozenset({"name_or_path", "is_local", "local_files_only"})


@cache
def _code() -> str:
    """The code that makes token ids of rows: this package's, and the libraries' versions."""
    import lorary.adapters
    import lorary.hub.manifest
    import lorary.training.data
    import lorary.training.tasks

    told = hashlib.sha256(Path(lorary.hub.manifest.__file__).read_bytes())
    for package in (lorary.adapters, lorary.training.data, lorary.training.tasks):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            told.update(path.read_bytes())
    return told.hexdigest() + "".join(map(version, ("transformers", "tokenizers", "jinja2")))
