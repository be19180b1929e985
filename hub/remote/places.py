"""From an address to the remote that is there."""

from __future__ import annotations

import re

from lorary.hub.reference import HubReference
from lorary.hub.remote.address import Address
from lorary.hub.remote.base import Remote
from lorary.hub.remote.folder import SharedFolder
from lorary.hub.remote.repository import Repository, user_name


def open_remote(address: Address, name: str | None = None) -> Remote:
    """The remote of an address; ``name`` is the adapter's in a shared folder, where the address doesn't name one."""
    if isinstance(address, HubReference):
        return Repository(address.repo)
    return SharedFolder.of(address.path, name)


def repository_of(name: str) -> str:
    """The repository of an adapter's name of the user who is logged in."""
    # A name may hold what the Hub doesn't allow in one: two signs in a row.
    return f"{user_name()}/{re.sub(r'[.-]{2,}', '-', name)}"
