"""Adapters that are made once and copied: the same call comes up again in test after test."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def made_once(make: Callable[..., Any]) -> Callable[..., Path]:
    """``make(base, folder, ...)``, which fills a folder; called again alike it gives a copy of what it made first.

    Alike means: the same words, and a base whose files haven't changed since. torch's random numbers go on as they do
    after the making, so that a test's own are the same in whichever order the tests run.
    """
    made: dict[tuple[Any, ...], tuple[Path, torch.Tensor]] = {}

    @functools.wraps(make)
    def give(base: Path, folder: Path, *words: Any, **settings: Any) -> Path:
        files = [(file.name, file.stat().st_mtime_ns) for file in sorted(Path(base).iterdir())]
        call = (str(base), *files, repr(words), repr(sorted(settings.items())))
        if call not in made:
            first = Path(tempfile.mkdtemp(dir=_shelf().name))
            make(base, first, *words, **settings)
            made[call] = first, torch.get_rng_state()
        first, state = made[call]
        torch.set_rng_state(state)
        return shutil.copytree(first, folder, copy_function=shutil.copyfile, dirs_exist_ok=True)

    return give


@functools.cache
def _shelf() -> tempfile.TemporaryDirectory[str]:
    """Where they are kept until this process ends, beside pytest's own folders."""
    return tempfile.TemporaryDirectory(prefix="lorary-made-", dir=os.environ.get("PYTEST_DEBUG_TEMPROOT"))
