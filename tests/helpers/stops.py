"""Ends of runs: a reporter that stops or kills its own process at a chosen moment, and how two end together."""

from __future__ import annotations

import fcntl
import os
import pty
import runpy
import select
import signal
import subprocess
import sys
import termios
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from forks import end

from lorary.training.progress import BarReporter, Reporter


class Signal(Reporter):
    """Sends this process a signal at a moment: a phase, or ``step N``."""

    def __init__(self, moment: str, number: signal.Signals = signal.SIGINT) -> None:
        super().__init__()
        self.moment, self.number = moment, number

    def phase(self, text: str) -> None:
        if text == self.moment:
            signal.raise_signal(self.number)

    def step(self, done: int, total: int, loss: float) -> None:
        if self.moment == f"step {done}":
            signal.raise_signal(self.number)


def hang_up(words: list[str], place: str, ignored: bool) -> int:
    """The command line in a ``terminal`` or a ``pipe``, the other side of which goes away in the fifth step.

    A terminal of its own sends SIGHUP then, as one does whose connection is lost; a pipe's reader doesn't, so that its
    shell has to. With ``ignored`` the process doesn't listen, as under nohup.
    """
    from lorary.hub.cli.main import main

    signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    ours, theirs = pty.openpty() if place == "terminal" else os.pipe()
    if place == "terminal":
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)
    said = os.dup(1)
    for stream in (1, 2):
        os.dup2(theirs, stream)
    os.close(theirs)
    gone = threading.Event()

    def read() -> None:
        while not gone.is_set():
            if select.select([ours], [], [], 0.01)[0]:
                os.write(said, os.read(ours, 65536))
        os.close(ours)

    reader, inner = threading.Thread(target=read), BarReporter.step
    reader.start()

    def step(self: BarReporter, done: int, total: int, loss: float) -> None:
        inner(self, done, total, loss)
        if done == 5:
            gone.set()
            reader.join()
            if place == "pipe":
                signal.raise_signal(signal.SIGHUP)
            self.note("nobody is there to read this")

    BarReporter.step = step  # type: ignore[method-assign]
    return main(words)


class _Forked(subprocess.Popen[bytes]):
    """What a launcher starts as ``python -m module ...``, in a fork that has imported torch already."""

    def __init__(self, args: Sequence[str], *, env: Mapping[str, str], **settings: Any) -> None:
        self._environment = env
        super().__init__(args, env=env, **settings)

    def _execute_child(self, args: Sequence[str], *_: Any) -> None:
        self._child_created = True
        self.pid = os.fork()
        if self.pid == 0:
            os.setsid()
            os.closerange(3, 256)  # nothing of the launcher's is open in another program
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            end(_called(args, self._environment))


def _called(args: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run ``python -u -m module ...`` here; its exit code."""
    os.environ.clear()
    os.environ.update(environment)
    _, _, flag, module, *words = args
    assert flag == "-m"
    sys.argv = [module, *words]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def launch(words: list[str]) -> None:
    """accelerate's launcher as it is typed, in a session of its own, all of which can be sent a signal.

    The processes that it starts are forks: each would import all of torch and transformers anew.
    """
    from accelerate.commands.launch import main
    from torch.distributed.elastic.multiprocessing.subprocess_handler import subprocess_handler

    os.setsid()
    subprocess_handler.Popen = _Forked
    sys.argv = ["accelerate launch", *words]
    main()


def last_words(folder: str) -> int:
    """One of two processes: the first takes its time to write, the other waits for its end; 0 if it then finds that."""
    import torch.distributed as dist

    from lorary.training.distributed import Group

    dist.init_process_group("gloo")
    group, words = Group(2, dist.get_rank()), Path(folder) / "words"
    group.wait()
    if not group.first:
        group.until_first_ends()
        return 0 if words.exists() else 1
    time.sleep(0.5)
    words.write_text("stopped")
    return 0


def take_turns(folder: str) -> None:
    """One of two processes, each of which writes when its turn begins and when it ends."""
    import torch.distributed as dist

    from lorary.training.distributed import Group

    dist.init_process_group("gloo")
    rank = dist.get_rank()
    with Group(2, rank, place=rank).in_turn(), (Path(folder) / "turns").open("a") as turns:
        print(f"{rank} begins", file=turns, flush=True)
        time.sleep(0.2)
        print(f"{rank} ends", file=turns, flush=True)


def asked_while_saving(folder: str) -> int:
    """One of two processes, of which the second alone gets a signal while both save; 0 if both stop after that."""
    import torch.distributed as dist

    from lorary.hub.errors import InterruptedRunError
    from lorary.training.distributed import Group
    from lorary.training.fitting.checkpointer import Checkpointer
    from lorary.training.interrupt import Stops

    dist.init_process_group("gloo")
    group, stops, steps = Group(2, dist.get_rank()), Stops(), Path(folder)
    (steps / "checkpoint-3").mkdir(exist_ok=True)
    state = SimpleNamespace(global_step=3, max_steps=9, epoch=0.5, best_global_step=None)
    args, control = SimpleNamespace(device="cpu"), SimpleNamespace(should_save=False)
    saves = Checkpointer(steps, 3, stops, 0.0, group)
    with stops, stops.after_the_step(lambda line: None):
        saves.on_step_end(args, state, control)
        if not group.first:
            signal.raise_signal(signal.SIGINT)
        try:
            saves.on_save(args, state, control)
        except InterruptedRunError:
            signal.raise_signal(signal.SIGINT)  # the first one's own comes late, the second one's is sent on
            return 0
    return 1
