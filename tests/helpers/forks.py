"""Processes of their own for the tests, none of which imports everything anew.

A server imports once and forks a process for each call. A test that is about what is imported, or about what is read
when it is imported (``HF_ENDPOINT``), needs a fresh interpreter instead.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_NOT_OURS = "ignore:resource_tracker"  # what Python 3.14 says of a library's semaphores where a process was killed


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, -9 if it was killed, and what it wrote."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Running:
    """A process that was started."""

    forks: Forks
    pid: int
    folder: Path

    def wait(self) -> Ended:
        """Wait for its end."""
        code = self.forks.ask({"wait": self.pid})
        out, err = ((self.folder / name).read_text() for name in ("out", "err"))
        return Ended(code, out, err)


class Forks:
    """A process that has imported ``modules`` and forks others.

    Its hashes have a seed of their own, so what depends on the order of a set comes out otherwise than here.
    """

    def __init__(self, folder: Path, modules: Sequence[str]) -> None:
        self._folder = folder
        with (folder / "said").open("w") as said:
            self._process = subprocess.Popen(
                [sys.executable, __file__, *modules], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said,
                text=True, env={**os.environ, "PYTHONHASHSEED": "77", "PYTHONWARNINGS": _NOT_OURS},
            )  # fmt: skip

    def start(
        self, function: str, *arguments: Any, cwd: Path | None = None, whole_end: bool = False, **environment: str
    ) -> Running:
        """Call ``module:function`` in a new process; a number that it returns is the exit code.

        With ``whole_end`` the interpreter takes itself apart at its end, which costs more than most calls.
        """
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        for name in ("out", "err"):
            (folder / name).touch()  # the caller may read what there is before the process has begun
        order = {
            "function": function, "arguments": arguments, "cwd": str(cwd or Path.cwd()), "folder": str(folder),
            "environment": {**os.environ, **environment}, "whole_end": whole_end,
        }  # fmt: skip
        return Running(self, self.ask({"start": order}), folder)

    def run(self, function: str, *arguments: Any, **settings: Any) -> Ended:
        """Call ``module:function`` in a new process, as :meth:`start` does, and wait for its end."""
        return self.start(function, *arguments, **settings).wait()

    def ask(self, request: dict[str, Any]) -> Any:
        """Send the server a request, and give back its answer."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        assert answer, f"the server has ended: {self.said()}"
        return json.loads(answer)

    def said(self) -> str:
        """What the server itself wrote to stderr, such as warnings of libraries when they were imported."""
        return (self._folder / "said").read_text()

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=30)


def _fork() -> int:
    with warnings.catch_warnings():  # Python 3.12 and later: the libraries' threads wait for work and hold no lock
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _call(order: dict[str, Any]) -> int:
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["environment"])
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{order['folder']}/{name}", os.O_WRONLY), stream)
    module, _, function = order["function"].partition(":")
    try:
        code = getattr(importlib.import_module(module), function)(*order["arguments"])
        return code if isinstance(code, int) else 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1


def end(code: int) -> None:
    """End this process as an interpreter does, but for taking apart what was imported.

    The libraries' memory is the server's own until it's written to, and who frees an object writes to it.
    """
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _serve(modules: Sequence[str]) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    gc.disable()
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # a run's end looks for garbage: not among the libraries' own objects
    gc.enable()
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("wait"):
            answer = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        elif not (answer := _fork()):
            code = _call(request["start"])
            sys.exit(code) if request["start"]["whole_end"] else end(code)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1:])
