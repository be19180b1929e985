"""Finding adapters below a folder, and which of a run's checkpoints stand for it.

Trainers based on transformers' (PEFT, TRL, unsloth, axolotl, LLaMA-Factory) leave a run's folder with the finished
adapter and ``checkpoint-N`` folders in it; of a run that was stopped there are the checkpoints alone.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorary.hub.checkpoint import CONFIG_NAME, WEIGHTS_NAME

PICKLED_WEIGHTS = "adapter_model.bin"
_CHECKPOINT = re.compile(r"checkpoint-(\d{1,12})")
_BEFORE_HASH = 89  # signs of a name that leave room for a hash


@dataclass(frozen=True)
class Found:
    """An adapter's folder; ``step`` is that of a checkpoint folder, None for a run's finished adapter."""

    folder: Path
    run: Path
    step: int | None


@dataclass(frozen=True)
class Run:
    """All adapters of one run, the one that stands for it first; ``name`` is a name for the catalogue."""

    folder: Path
    name: str
    adapters: tuple[Found, ...]


def find_runs(root: Path) -> tuple[list[Run], dict[Path, str]]:
    """The runs below ``root``, and why other folders weren't looked into: links to adapters, and what can't be read."""
    found: dict[Path, list[Found]] = {}
    left: dict[Path, str] = {}
    for folder in _folders(root, left):
        if _is_adapter(folder):
            step = _CHECKPOINT.fullmatch(folder.resolve().name)
            run = folder.resolve().parent if folder == root and step else folder.parent if step else folder
            found.setdefault(run, []).append(Found(folder, run, int(step[1]) if step else None))
    names = _names(root, list(found))
    runs = [Run(run, names[run], tuple(sorted(adapters, key=_newest_first))) for run, adapters in found.items()]
    return runs, left


def _newest_first(found: Found) -> tuple[bool, int]:
    return found.step is not None, -(found.step or 0)


def _folders(root: Path, left: dict[Path, str]) -> Iterator[Path]:
    def unread(error: OSError) -> None:
        left[Path(error.filename)] = f"can't be read ({error.strerror})"

    for parent, names, _ in os.walk(root, onerror=unread, followlinks=False):
        here = Path(parent)
        if not os.access(here, os.X_OK):  # its names may be read, and nothing of what is behind them
            unread(PermissionError(errno.EACCES, os.strerror(errno.EACCES), parent))
            names.clear()
            continue
        names.sort()
        links = [here / name for name in names if (here / name).is_symlink()]
        left |= {link: "is a link; name the folder itself" for link in links if _is_adapter(link)}
        names[:] = [name for name in names if not name.startswith(".") and here / name not in links]
        yield here


def _is_adapter(folder: Path) -> bool:
    try:
        return any((folder / name).is_file() for name in (CONFIG_NAME, WEIGHTS_NAME, PICKLED_WEIGHTS))
    except PermissionError:  # a link may lead behind a folder that can't be entered
        return False


def _names(root: Path, runs: list[Path]) -> dict[Path, str]:
    """A name for each run: its folder's, with those above it where that alone stands for several.

    Where several come to one name even so, each has a hash of its path behind it: a number would become another's when
    a folder is added, and the one's adapter the other's next version.
    """
    names = {run: slug(run.resolve().name) for run in runs}
    below = {run: run.relative_to(root) for run in runs if run != root and run.is_relative_to(root)}
    names |= {run: slug("-".join(below[run].parts)) for run in _alike(names) if run in below}
    alike = [run for run in _alike(names) if run in below]
    return names | {run: f"{names[run][:_BEFORE_HASH]}-{_short_hash(below[run].as_posix())}" for run in alike}


def _alike(names: dict[Path, str]) -> list[Path]:
    counts = Counter(names.values())
    return [run for run, name in names.items() if counts[name] > 1]


def slug(text: str) -> str:
    """A text as a name in the catalogue; of one that has none of the signs of a name, its hash tells it from others."""
    return re.sub(r"[^a-z0-9._-]+", "-", text.lower())[:96].strip("-._") or f"adapter-{_short_hash(text)}"


def _short_hash(text: str) -> str:
    return hashlib.sha256(os.fsencode(text)).hexdigest()[:6]
