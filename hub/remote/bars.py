"""The progress bars of downloads: gone when they are done, so that what is printed next has its lines to itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def bars(*, shown: bool) -> Iterator[type[Any]]:
    """A class of bars for ``huggingface_hub``, which opens bars and closes none of them; where not ``shown``, none."""
    from huggingface_hub.utils import tqdm

    opened: list[Any] = []

    class Bar(tqdm):
        def __init__(self, *arguments: Any, **settings: Any) -> None:
            settings["leave"] = False
            if not shown:
                settings["disable"] = True
            super().__init__(*arguments, **settings)
            opened.append(self)

    try:
        yield Bar
    finally:
        for bar in reversed(opened):
            bar.close()
