"""Folders that are there whole or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lorary.hub.errors import OutputError


def demand_free(folder: Path) -> None:
    """Refuse a folder that holds something.

    Raises:
        OutputError: it does, or it is a file.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise OutputError(f"{folder}: is there already and no folder; name a new one")
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(f"{folder}: is there already and isn't empty; name a new folder, or clear this one first")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to write in that becomes ``folder`` when the block ends well, and leaves nothing when it doesn't.

    It is beside its target, so that taking its name is one step.

    Raises:
        OutputError: the target holds something, or the disk is full or can't be written.
    """
    from safetensors import SafetensorError

    demand_free(folder)
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    try:
        draft.mkdir(parents=True)
        yield draft
        if folder.is_dir():
            folder.rmdir()  # empty, as was asked above; Windows renames onto no folder
        draft.rename(folder)
    except (OSError, SafetensorError) as error:
        why = getattr(error, "strerror", None) or error
        raise OutputError(f"{folder}: can't be written ({why}); make room, or name another place") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
