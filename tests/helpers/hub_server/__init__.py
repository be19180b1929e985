"""A small Hugging Face Hub on 127.0.0.1, for the real client: downloads, uploads, and ways to fail.

Two ports, as the Hub has two hosts: one answers for repositories, the other takes and hands out large files, to which
the first redirects. ``reading.ROUTES`` and ``writing.ROUTES`` are what is understood; :meth:`HubServer.commit` changes
a repository from within a test.
"""

from hub_server.server import HubServer
from hub_server.state import LARGE_FILES, Fault, Repo, Request

__all__ = ["LARGE_FILES", "Fault", "HubServer", "Repo", "Request"]
