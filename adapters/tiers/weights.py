"""Reading a checkpoint's tensors once: the bytes that are hashed are the bytes that are served.

Hashing a file and then loading it reads it twice, and a file that changes in between is served under a digest that it
hasn't.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from lorary.hub.checkpoint import WEIGHTS_NAME, Checkpoint, read_again
from lorary.hub.errors import ChangedFilesError, CheckpointError, UnsupportedAdapterError
from lorary.hub.tensorfile import TensorInfo

_FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_ANY = _FLOATS | {
    "BOOL": torch.bool,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8,
}  # fmt: skip
_SEVERAL_THREADS = 2**23  # bytes from which on hashing in several threads pays
_KEPT_BYTES = 2**28  # what is larger costs its own memory each time


@dataclass(frozen=True)
class Weights:
    """A checkpoint's tensors and the digest of exactly these, valid within the block that read them."""

    checkpoint: Checkpoint
    tensors: Mapping[str, torch.Tensor]
    digest: str


class WeightsReader:
    """Reads weights files into buffers that it keeps: fresh memory costs the system more than reading into it does."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffers: list[torch.Tensor] = []
        self._hashing: ThreadPoolExecutor | None = None

    @contextmanager
    def read(self, checkpoint: Checkpoint, *, floats: bool = True) -> Iterator[Weights]:
        """The tensors of a checkpoint whose header was just read; they are gone when the block ends.

        ``floats``: numbers of another kind, such as the indices that some of PEFT's methods keep, are refused.

        Raises:
            CheckpointError: the file can't be read, or isn't as long as it was.
            UnsupportedAdapterError: a tensor isn't of floating-point numbers.
        """
        path = checkpoint.files[WEIGHTS_NAME]
        size = max(info.end for info in checkpoint.tensors.values())
        buffer = self._take(size)
        try:
            _fill(buffer[:size], path)
            known = _FLOATS if floats else _ANY
            tensors = {
                key: _cut(buffer, key, info, known, checkpoint.source) for key, info in checkpoint.tensors.items()
            }
            yield Weights(checkpoint, tensors, checkpoint.digest_of(self._hash(buffer, checkpoint.tensors, size)))
        finally:
            with self._lock:
                if sum(map(len, self._buffers)) + len(buffer) <= _KEPT_BYTES:
                    self._buffers.append(buffer)

    @contextmanager
    def read_again(self, checkpoint: Checkpoint, digest: str) -> Iterator[Weights]:
        """The tensors of a checkpoint that was read before, if they still are what they were.

        Raises:
            ChangedFilesError: the files have another digest now.
            CheckpointError: they can't be read any more.
        """
        with self.read(read_again(checkpoint)) as weights:
            if weights.digest != digest:
                raise ChangedFilesError(
                    f"{checkpoint.source}: its files have changed since they were loaded (digest {digest[:12]} then, "
                    f"{weights.digest[:12]} now), so they are not served under its name; put the files back, or load "
                    "the name again"
                )
            yield weights

    def _hash(self, buffer: torch.Tensor, tensors: Mapping[str, TensorInfo], size: int) -> dict[str, str]:
        """The sha256 of each tensor's bytes; hashlib lets other threads run, so that of a large file in several."""
        image = buffer.numpy().data

        def hashed(info: TensorInfo) -> str:
            return hashlib.sha256(image[info.start : info.end]).hexdigest()

        if size < _SEVERAL_THREADS:
            return {key: hashed(info) for key, info in tensors.items()}
        with self._lock:
            if self._hashing is None:
                self._hashing = ThreadPoolExecutor(min(4, os.cpu_count() or 1), thread_name_prefix="lorary-hash")
        return dict(zip(tensors, self._hashing.map(hashed, tensors.values()), strict=True))

    def _take(self, size: int) -> torch.Tensor:
        with self._lock:
            fitting = next((index for index, buffer in enumerate(self._buffers) if len(buffer) >= size), None)
            if fitting is not None:
                return self._buffers.pop(fitting)
        return torch.empty(size, dtype=torch.uint8, device="cpu")


def _fill(buffer: torch.Tensor, path: Path) -> None:
    image, filled = buffer.numpy().data, 0
    try:
        with path.open("rb", buffering=0) as file:
            while filled < len(image) and (count := file.readinto(image[filled:])):
                filled += count
            longer = bool(file.read(1))
    except OSError as error:
        raise CheckpointError(f"{path}: can't be read ({error.strerror or error}); copy it again") from error
    if filled < len(image) or longer:
        raise CheckpointError(
            f"{path}: holds {'more' if longer else filled} bytes, its header was read from a file of {len(image)}; "
            "it changed while it was read, load it again"
        )


def _cut(
    buffer: torch.Tensor, key: str, info: TensorInfo, known: Mapping[str, torch.dtype], source: str
) -> torch.Tensor:
    if info.dtype not in known:
        raise UnsupportedAdapterError(
            f"{source}: {key!r} holds {info.dtype}; expected floating-point weights of 16 bits or more"
        )
    dtype = known[info.dtype]
    raw = buffer[info.start : info.end]
    # A view needs an address that the dtype divides; the format pads the header to 8 bytes, but not each tensor.
    if info.start % dtype.itemsize:
        raw = raw.clone()
    return raw.view(dtype).view(info.shape)
