"""A reporter that stops or kills its own process at a chosen moment of a run."""

from __future__ import annotations

import signal

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
