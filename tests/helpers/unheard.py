"""A process that goes on printing when nobody is left to read it."""

from __future__ import annotations

import io
import os
import pty
import sys

from lorary.hub.streams import settle_streams


def talk(name: str, place: str, buffered: bool) -> None:
    """Say what became of lines on a stream that goes to a ``terminal`` or a ``pipe``: ``borne``, or an error."""
    number = {"stdout": 1, "stderr": 2}[name]
    ours, theirs = pty.openpty() if place == "terminal" else os.pipe()
    answers = os.dup(1)
    os.dup2(theirs, number)
    os.close(theirs)
    raw = io.FileIO(number, "w", closefd=False)
    setattr(sys, name, io.TextIOWrapper(io.BufferedWriter(raw) if buffered else raw, write_through=not buffered))
    settle_streams()
    out = getattr(sys, name)
    print("heard", file=out, flush=True)
    heard = os.read(ours, 100).split()
    os.close(ours)
    said = "borne"
    try:
        for _ in range(3):
            print("unheard", file=out, flush=True)
    except OSError as error:
        said = type(error).__name__
    os.dup2(answers, number)
    os.write(answers, b" ".join([*heard, said.encode()]))
