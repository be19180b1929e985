"""Sharing adapters: the Hugging Face Hub and shared folders, behind one protocol (:mod:`lorary.hub.remote.base`)."""

from lorary.hub.remote.listing import list_remote
from lorary.hub.remote.pull import pull
from lorary.hub.remote.push import push
from lorary.hub.remote.status import status
from lorary.hub.remote.sync import sync

__all__ = ["list_remote", "pull", "push", "status", "sync"]
