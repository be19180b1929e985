"""The header of a safetensors file: names, dtypes, shapes and where the bytes are, without torch or numpy; writing one.

Format: https://github.com/huggingface/safetensors#format. Eight bytes of little-endian header length, a JSON header,
then the tensors' bytes. The header comes from outside, so each of its claims is checked against the file's size.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lorary.hub.errors import CheckpointError
from lorary.hub.jsontext import load_json

MAX_HEADER_BYTES = 25_000_000  # some 200,000 tensors; the library's own limit, 100 MB, is gigabytes once it is parsed

DTYPE_BYTES: Mapping[str, int] = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "F8_E5M2": 1,
    "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1,
}  # fmt: skip

_CHUNK = 1 << 20
_LFS_POINTER = b"version "  # https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md
_MAX_DIMENSIONS = 64  # torch's own limit


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header states it; ``start`` and ``end`` are byte positions in the file."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        """How many numbers the tensor holds."""
        return math.prod(self.shape)


def read_header(path: Path, shown: str | None = None) -> dict[str, TensorInfo]:
    """Names and places of a file's tensors, sorted by name; ``shown`` is what errors call the file.

    Raises:
        CheckpointError: the file is missing, truncated, or its header contradicts its size.
    """
    try:
        with path.open("rb") as file:
            return _read_header(file, path.stat().st_size, shown or path.name)
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error})") from error


def _read_header(file: BinaryIO, size: int, name: str) -> dict[str, TensorInfo]:
    prefix = file.read(8)
    if len(prefix) < 8:
        raise CheckpointError(
            f"{name}: {size} bytes is too short for a safetensors file; it is truncated, copy it again"
        )
    if prefix == _LFS_POINTER:
        raise CheckpointError(
            f"{name}: is a pointer of Git LFS in place of the file; `git lfs pull` in its repository fetches that"
        )
    (length,) = struct.unpack("<Q", prefix)
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise CheckpointError(
            f"{name}: its first bytes claim a header of {length} bytes, but the file holds {size}; "
            "it is truncated or not a safetensors file, copy it again"
        )
    try:
        header = load_json(file.read(length))
    except ValueError as error:
        raise CheckpointError(f"{name}: its safetensors header isn't JSON ({error}); copy it again") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{name}: its safetensors header isn't a JSON object; copy it again")
    header.pop("__metadata__", None)
    tensors = {key: _tensor(key, header[key], 8 + length, size, name) for key in sorted(header)}
    _check_layout(tensors, 8 + length, size, name)
    return tensors


def _tensor(key: str, entry: Any, data_start: int, size: int, name: str) -> TensorInfo:
    try:
        dtype, shape, (start, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        if dtype not in DTYPE_BYTES:
            raise CheckpointError(f"{name}: tensor {key!r} has the dtype {dtype!r}; known: {', '.join(DTYPE_BYTES)}")
        if len(shape) > _MAX_DIMENSIONS or not all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, end)):
            raise ValueError(f"expected up to {_MAX_DIMENSIONS} sizes, each a whole number of 0 up to 2**63")
        expected = math.prod(shape) * DTYPE_BYTES[dtype]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{name}: the header's entry for {key!r} is malformed ({error})") from error
    if end - start != expected or data_start + end > size:
        raise CheckpointError(
            f"{name}: tensor {key!r} ({dtype}, shape {list(shape)}) needs {expected} bytes, the header gives it "
            f"{end - start} up to byte {data_start + end} of a file of {size}; it is damaged, copy it again"
        )
    return TensorInfo(dtype, shape, data_start + start, data_start + end)


def _check_layout(tensors: Mapping[str, TensorInfo], data_start: int, size: int, name: str) -> None:
    """Tensors must follow one another without a gap or an overlap, as the format demands."""
    position = data_start
    for key, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != position:
            raise CheckpointError(f"{name}: tensor {key!r} overlaps another or leaves a gap before it; copy it again")
        position = info.end
    if position != size:
        raise CheckpointError(f"{name}: {size - position} bytes follow the last tensor; copy it again")


def tensor_hashes(path: Path, tensors: Mapping[str, TensorInfo]) -> Iterator[tuple[str, str]]:
    """The sha256 of each tensor's bytes, in the order given."""
    with path.open("rb") as file:
        for name, info in tensors.items():
            file.seek(info.start)
            digest = hashlib.sha256()
            left = info.end - info.start
            while left:
                block = file.read(min(left, _CHUNK))
                if not block:
                    raise CheckpointError(f"{path.name}: ends in the middle of {name!r}; copy it again")
                digest.update(block)
                left -= len(block)
            yield name, digest.hexdigest()


def write_tensors(path: Path, stated: Mapping[str, tuple[str, Sequence[int]]], contents: Iterable[bytes]) -> None:
    """Write a file of tensors: each one's dtype and shape by its name, and their bytes in the same order."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, (dtype, shape) in stated.items():
        end = position + math.prod(shape) * DTYPE_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at whole words, as the library writes them
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for content in contents:
            file.write(content)
