"""The progress bars of downloads: gone when they are done, so that what is printed next has its lines to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lorary.hub.errors import UnsafeFileError

_SLACK = 10_000_000  # bytes: what is sent twice after an interruption, and the names' own weight


@contextmanager
def bars(*, shown: bool, expected: int) -> Iterator[type[Any]]:
    """A class of bars for ``huggingface_hub``, which opens bars and closes none of them; where not ``shown``, none.

    Its ``update`` raises an UnsafeFileError when far more than the ``expected`` bytes have come.
    """
    from huggingface_hub.utils import tqdm

    opened: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings["leave"] = False
            if not shown:
                settings["disable"] = True
            super().__init__(*arguments, **settings)
            opened.append(self)
            self._come = 0.0

        def update(self, n: float | None = 1) -> bool | None:
            self._come += n or 0
            if self._come > 2 * expected + _SLACK:
                raise UnsafeFileError(
                    f"{self._come:,.0f} bytes came, but {expected:,} were announced; the download was broken off"
                )
            return super().update(n)

    try:
        yield Bar
    finally:
        for bar in reversed(opened):
            bar.close()
