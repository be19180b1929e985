"""The git commit of the folder that a run is started in: the code and the recipes that belong to it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

_COMMIT = "# branch.oid "
_PATIENCE = 10.0  # seconds; a large repository on a slow disk isn't worth waiting for


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """``commit``, and whether tracked files are ``dirty``: differ from it. None outside a repository or without git.

    Files that git doesn't know are left out: a run's own folder is one.
    """
    told = _git(folder, "status", "--porcelain=v2", "--branch", "--untracked-files=no")
    if told is None:  # of a repository without a working tree, or one that takes too long to look through
        commit = _git(folder, "rev-parse", "--verify", "HEAD")
        return {"commit": commit, "dirty": None} if commit else None
    lines = told.splitlines()
    commit = next((line.removeprefix(_COMMIT) for line in lines if line.startswith(_COMMIT)), "")
    if not commit or commit.startswith("("):  # (initial): there is none yet
        return None
    return {"commit": commit, "dirty": any(not line.startswith("#") for line in lines)}


def _git(folder: Path | None, *arguments: str) -> str | None:
    # No lock on the repository, which others may use, and no helper program that its settings name.
    command = ["git", "-c", "core.fsmonitor=false", *arguments]
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_PATIENCE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
