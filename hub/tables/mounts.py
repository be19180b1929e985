"""Is a registry on a network file system? SQLite's locks, and so many writers, depend on the file system's.

Formats: ``/proc/self/mountinfo`` as of proc(5). Best effort: what can't be found out counts as local.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from pathlib import Path, PurePath

from lorary.hub.errors import NetworkFileSystemWarning

_MOUNTINFO = Path("/proc/self/mountinfo")
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|afpfs|webdav|davfs2?|9p|afs|ceph|glusterfs|lustre|beegfs|gpfs|orangefs|fuse(?:\..+)?",
    re.IGNORECASE,
)
_LOCAL_FUSE = frozenset(
    {"fuse.bindfs", "fuse.encfs", "fuse.ext2", "fuse.fuse-overlayfs", "fuse.gocryptfs", "fuse.lxcfs", "fuse.mergerfs"}
)
_warned = False


def warn_of_network(path: Path) -> None:
    """Warn once in a process, with a :class:`NetworkFileSystemWarning`, if ``path`` is on a network file system."""
    global _warned
    if _warned or (kind := network_type(path, _mounts())) is None:
        return
    _warned = True
    warnings.warn(
        f"{path} is on a network file system ({kind}), whose locks may fail between several writers and damage it; "
        "keep it on a local disk and share versions with `lorary push`",
        NetworkFileSystemWarning,
        stacklevel=2,
    )


def network_type(path: Path, mounts: Iterable[tuple[str, str]]) -> str | None:
    """The type of the file system that ``path`` is on, if that is one over a network.

    Args:
        path: an absolute path, which needn't exist.
        mounts: mount points and types, in the order in which they were mounted.
    """
    place, deepest, kind = PurePath(path), -1, ""
    for point, found in mounts:
        depth = len(PurePath(point).parts)
        if depth >= deepest and place.is_relative_to(point):  # a later mount hides an earlier one
            deepest, kind = depth, found
    return kind if kind not in _LOCAL_FUSE and _NETWORK.fullmatch(kind) else None


def parse_mountinfo(text: str) -> list[tuple[str, str]]:
    """Mount points and types out of the text of ``/proc/self/mountinfo``; what isn't such a line is passed over."""
    mounts = []
    for line in text.splitlines():
        before, dash, after = line.partition(" - ")
        fields, kinds = before.split(" "), after.split(" ")
        if dash and len(fields) > 4 and kinds[0]:
            mounts.append((re.sub(r"\\([0-7]{3})", lambda sign: chr(int(sign[1], 8)), fields[4]), kinds[0]))
    return mounts


def _mounts() -> list[tuple[str, str]]:
    try:
        if _MOUNTINFO.exists():
            return parse_mountinfo(_MOUNTINFO.read_text(encoding="utf-8", errors="surrogateescape"))
        import psutil

        return [(part.mountpoint, part.fstype) for part in psutil.disk_partitions(all=True)]
    except (OSError, ValueError):
        return []
