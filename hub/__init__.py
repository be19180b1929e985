"""What an adapter is, where it is kept, how it is shared. Imports no torch."""

from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.errors import LoraryError
from lorary.hub.manifest import BaseIdentity, Manifest
from lorary.hub.registry import Registry
from lorary.hub.values import FileEntry, Finding, Version

__all__ = [
    "BaseIdentity",
    "Checkpoint",
    "FileEntry",
    "Finding",
    "LoraryError",
    "Manifest",
    "Registry",
    "Version",
    "read_checkpoint",
]
