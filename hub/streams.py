"""The process's own streams, where a shell has closed them, or where nobody is left to read them."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Collection
from typing import Any

_STREAMS = (("stdin", "r"), ("stdout", "w"), ("stderr", "w"))


def settle_streams() -> None:
    """Make the streams usable for as long as the process runs: none is closed, and no lost reader of messages ends it.

    A terminal goes away with its window or its connection, and a pipe with the process that reads it. What is printed
    for nobody is left out then: a run isn't worth less for it. Only a pipe that stdout goes to still raises
    BrokenPipeError, since a command whose results nobody takes is done.
    """
    for number, (name, mode) in enumerate(_STREAMS):
        if getattr(sys, name) is None:  # `2>&-`: the next file opened would take its number
            sink = os.open(os.devnull, os.O_RDWR)
            if sink != number:
                os.dup2(sink, number)
                os.close(sink)
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    sys.stdout = _lasting(sys.stdout, 1, ())
    sys.stderr = _lasting(sys.stderr, 2, {errno.EPIPE})


def _lasting(stream: Any, number: int, borne: Collection[int]) -> Any:
    """A stream that outlasts its terminal and errors that are ``borne``; what others put in its place stays there."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # with PYTHONUNBUFFERED there is nothing in between
    if type(raw) is not io.FileIO or raw.fileno() != number:
        return stream
    stream.flush()
    outlasts = _Outlasts(number, {errno.EIO} if stream.isatty() else borne)
    return io.TextIOWrapper(
        outlasts if buffer is raw else io.BufferedWriter(outlasts), stream.encoding, stream.errors,
        line_buffering=stream.line_buffering, write_through=stream.write_through,
    )  # fmt: skip


class _Outlasts(io.FileIO):
    """A file whose end nobody may be reading any more: from then on what is written to it goes nowhere."""

    def __init__(self, number: int, borne: Collection[int]) -> None:
        super().__init__(number, "w", closefd=False)
        self._borne = borne

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._borne:
                raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self.fileno())
        os.close(nowhere)
        return super().write(data)
