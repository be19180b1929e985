"""Ends of runs: a reporter that stops or kills its own process at a chosen moment, and who of two goes last."""

from __future__ import annotations

import signal
import time
from pathlib import Path

from lorary.training.progress import Reporter


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
