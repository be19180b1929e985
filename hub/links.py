"""Links among an adapter's files, which may lead anywhere."""

from __future__ import annotations

import os
from pathlib import Path


def leads_away(path: Path, folder: Path) -> Path | None:
    """Where a file below ``folder`` leads to, if it is a link that anybody may have made; None where it is no such one.

    The Hub's own cache consists of links into its blobs.
    """
    target = Path(os.path.realpath(path))
    if not path.is_symlink() or target.is_relative_to(folder.resolve().parent.parent / "blobs"):
        return None
    return target
