"""The kernel's library: compiled once per user, kind of processor and of numbers, and kept in the user's cache.

Nothing depends on it. Where it can't be made (no gcc, another system or processor, no place to write), mixed rows go
through PyTorch's products, which the tests hold it against.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from lorary.hub.files.user_cache import cache_folder

SWITCH = "LORARY_KERNEL"  # `off`: never compile, never load
_SOURCE = Path(__file__).with_name("mixed_rows.c")
_SECONDS = 60
# What PyTorch looks for in a processor of each kind, and no more. Tuned for a kind, since by default gcc splits loads
# in two; not -march=native, since a home folder may be shared by machines of several kinds.
_PROCESSORS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c", "-mtune=icelake-server"),
    "AVX512": ("-mavx512f", "-mavx512vl", "-mavx512bw", "-mavx512dq", "-mfma", "-mf16c", "-mtune=haswell"),
}
_FLAGS = ("-O3", "-shared", "-fPIC", "-fopenmp", "-fvisibility=hidden", "-Wno-psabi", "-Wl,-z,defs")


@cache
def library(kept: str = "FLOAT32") -> ctypes.CDLL | None:
    """The loaded library; None where there is none to be had, or ``LORARY_KERNEL=off`` says that none is wanted.

    ``kept`` is what factors are kept in, as the code calls it. One library for all three would take four times as long
    to compile, and hardly anybody needs more than one.
    """
    openmp = _openmp()
    flags = _PROCESSORS.get(torch.backends.cpu.get_cpu_capability())
    if os.environ.get(SWITCH, "").lower() == "off" or sys.platform != "linux" or flags is None or openmp is None:
        return None
    command = (*_FLAGS, *flags, f"-DKEPT={kept}", str(_SOURCE), str(openmp))
    with suppress(OSError):  # a home that can't be written to
        folder = cache_folder("kernels")
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            if _only_ours(folder):
                key = hashlib.sha256(_SOURCE.read_bytes() + repr(command).encode()).hexdigest()[:16]
                return _kept(folder / f"mixed_rows-{key}.so", command)
    with suppress(OSError), _folder() as place:  # nor any other place
        return _made(Path(place) / "mixed_rows.so", command)
    return None


def _openmp() -> Path | None:
    """The library of threads that PyTorch came with: a second one would have threads of its own beside the first's."""
    return next(iter(sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))), None)


def _kept(place: Path, command: tuple[str, ...]) -> ctypes.CDLL | None:
    """The library at ``place``, where it is compiled first if it isn't there or can't be loaded."""
    if place.is_file() and _only_ours(place) and _is_whole(place):
        try:
            return ctypes.CDLL(str(place))
        except OSError:
            pass  # of another C library
    return _made(place, command)


def _only_ours(place: Path) -> bool:
    """Is a file or folder the user's own, and can nobody else write to it? What is loaded is run."""
    held = place.stat()
    return held.st_uid == os.getuid() and not held.st_mode & 0o022


def _seal(file: Path) -> None:
    """Put a digest of the file behind it, where nobody who loads it looks."""
    with file.open("ab") as end:
        end.write(hashlib.sha256(file.read_bytes()).digest())


def _is_whole(file: Path) -> bool:
    """Is it as it was sealed? A library that was cut off, by a full disk or a crash, would end the process."""
    held, size = file.read_bytes(), hashlib.sha256().digest_size
    return held[-size:] == hashlib.sha256(held[:-size]).digest()


def _made(place: Path, command: tuple[str, ...]) -> ctypes.CDLL | None:
    """Compile to ``place``, all at once for whoever else looks there, and load it; None where that fails.

    Raises:
        OSError: ``place`` can't be written.
    """
    # Nothing is run that lies in the current folder, whatever PATH says, nor do compilers find their tools there.
    path = os.pathsep.join(filter(os.path.isabs, os.environ.get("PATH", os.defpath).split(os.pathsep)))
    compiler = shutil.which("gcc", path=path)  # others bring threads of their own
    if compiler is None:
        return None
    with _folder(place.parent) as name:
        made = Path(name) / place.name
        try:
            subprocess.run(
                [compiler, *command, "-o", str(made)],
                check=True,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                timeout=_SECONDS,
                env={**os.environ, "PATH": path},
            )
            _seal(made)
            made.chmod(0o700)
            library = ctypes.CDLL(str(made))
        except (subprocess.SubprocessError, OSError):
            return None
        made.replace(place)
    return library


def _folder(parent: Path | None = None) -> tempfile.TemporaryDirectory[str]:
    """A folder for a while; parts of a compiler that was given up may still write to it when it is removed."""
    return tempfile.TemporaryDirectory(dir=parent, ignore_cleanup_errors=True)
