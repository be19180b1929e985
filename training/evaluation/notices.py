"""Notices while several adapters are measured: each is told once, with the names of those that it speaks of."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager

from lorary.training.progress import Reporter


class Notices:
    """What is said of adapters, one after the other, on its way to a reporter.

    Args:
        reporter: is told of it.
        references: all that are measured; what is said of a single one needs no name.
    """

    def __init__(self, reporter: Reporter, references: Collection[str]) -> None:
        self._reporter = reporter
        self._references = references
        self._said: dict[str, list[str]] = {}  # whom it is said of, by line

    def of(self, reference: str) -> Reporter:
        """The reporter of what is done with one adapter."""
        return _OfOne(self._reporter, self._said, reference) if len(self._references) > 1 else self._reporter

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Tell at the end of the block, or when it fails, what was said in it: without names what is said of all."""
        try:
            yield
        finally:
            for line, whom in self._said.items():
                self._reporter.note(line if len(whom) == len(self._references) else f"{', '.join(whom)}: {line}")
            self._said.clear()


class _OfOne(Reporter):
    """Gathers the notices of one adapter; phases and steps are told at once."""

    def __init__(self, reporter: Reporter, said: dict[str, list[str]], reference: str) -> None:
        super().__init__()
        self._inner, self._said, self._reference = reporter, said, reference

    def phase(self, text: str) -> None:
        self._inner.phase(text)

    def step(self, done: int, total: int, loss: float) -> None:
        self._inner.step(done, total, loss)

    def note(self, line: str) -> None:
        whom = self._said.setdefault(line, [])
        if self._reference not in whom:
            whom.append(self._reference)
