"""Where a run's files will stand: in a folder that isn't there yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

INCOMPLETE = ".incomplete"
"""What the name of a run's folder ends with until the run is finished."""


def place_problems(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """An ``output`` that is there already, unless it has the files of a run that aren't in the catalogue yet."""
    output = values.get("output")
    if not isinstance(output, str) or not output:
        return
    folder = Path(output).expanduser()
    waits = Path(f"{folder}{INCOMPLETE}").is_dir()
    there = folder.is_file() or (folder.is_dir() and any(folder.iterdir()))
    if folder.name in ("", "..") or (there and not waits):
        yield "output", f"{output!r} is there already; name a folder that isn't, or remove it"
