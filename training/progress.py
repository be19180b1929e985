"""Telling the user what a run does: notices, and one progress bar."""

from __future__ import annotations

import math
import time
import warnings
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Reporter:
    """Is told what a run does. This one keeps the notices and shows nothing."""

    def __init__(self) -> None:
        self.notices: list[str] = []
        self.folder: Path | None = None  # where the run's files are, once they are complete
        self._phases: list[tuple[str, float]] = []

    def phase(self, text: str) -> None:
        """A part of the run begins, such as ``loading the base``."""
        self._phases.append((text, time.monotonic()))

    def durations(self) -> dict[str, float]:
        """Seconds by phase, up to now."""
        ends = [*(start for _, start in self._phases[1:]), time.monotonic()]
        seconds: dict[str, float] = {}
        for (name, start), end in zip(self._phases, ends, strict=False):
            seconds[name] = round(seconds.get(name, 0.0) + end - start, 3)
        return seconds

    def step(self, done: int, total: int, loss: float) -> None:
        """``done`` of ``total`` training steps are behind; ``loss`` is the last one's."""

    def note(self, line: str) -> None:
        """Something the user should know; kept in the manifest too."""
        if line not in self.notices:
            self.notices.append(line)


class BarReporter(Reporter):
    """Shows one bar with the phase, the steps, the loss and the time; notices stand above it. A context manager."""

    def __init__(self, name: str, console: Console | None = None) -> None:
        super().__init__()
        self._progress = Progress(
            TextColumn("[bold]{task.fields[adapter]}[/]"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            console=console or Console(stderr=True),
        )
        self._task = self._progress.add_task("starting", total=None, adapter=name, loss="")

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def phase(self, text: str) -> None:
        """Show what is being done."""
        super().phase(text)
        self._progress.update(self._task, description=text)

    def step(self, done: int, total: int, loss: float) -> None:
        """Move the bar."""
        shown = f"loss {loss:.3f}" if math.isfinite(loss) else ""
        self._progress.update(self._task, completed=done, total=total, loss=shown)

    def note(self, line: str) -> None:
        """Print a notice above the bar."""
        if line not in self.notices:
            self._progress.console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
        super().note(line)


def quiet_libraries() -> Any:
    """A context in which the libraries' own bars and log lines are off."""
    return _Quiet()


class _Quiet:
    def __enter__(self) -> None:
        from lorary.adapters.base.quantization import quieten

        quieten()  # before anything imports bitsandbytes, which prints a line on import
        import datasets
        from transformers.utils import logging

        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        # Deprecations between the libraries themselves: nothing that a user of this one could mend.
        warnings.simplefilter("ignore", FutureWarning)
        # PEFT says so of each of the trainer's checkpoints; what is kept of an adapter is asked for in so many words.
        warnings.filterwarnings("ignore", "Setting `save_embedding_layers` to `True`", UserWarning)
        self._level = logging.get_verbosity()
        self._bars, self._tables = logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        datasets.disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        import datasets
        from transformers.utils import logging

        self._warnings.__exit__(None, None, None)
        logging.set_verbosity(self._level)
        if self._bars:
            logging.enable_progress_bar()
        if self._tables:
            datasets.enable_progress_bars()
