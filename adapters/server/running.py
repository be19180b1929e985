"""Running the service: a socket that is taken before anything is loaded, and an end that lets requests finish."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Callable

import uvicorn

from lorary.adapters.arguments import whole_number
from lorary.adapters.server.app import create_app
from lorary.adapters.server.service import Service
from lorary.hub.errors import UsageError

_LAST_SECONDS = 5  # for callers to be told that the service has stopped


def listen(host: str, port: int) -> socket.socket:
    """A socket at this address; nobody is let in before :func:`run`.

    Args:
        host: a name or an address.
        port: 0 for any that is free.

    Raises:
        UsageError: the address isn't this machine's, or somebody else is there.
    """
    whole_number("port", port, 0, 65535)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        taken = socket.socket(family, kind, protocol)
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
        # Whoever comes while models are loaded, and nobody listens here yet, could take it too.
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except (OSError, UnicodeError) as error:
        raise _not_here(f"{host}:{port}", error) from error
    taken.set_inheritable(True)
    return taken


def address_of(taken: socket.socket) -> str:
    """``http://127.0.0.1:8000``, for a socket at any address this machine's own."""
    host, port = taken.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = "127.0.0.1"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_local(taken: socket.socket) -> bool:
    """Can it be reached from this machine alone?"""
    return ipaddress.ip_address(taken.getsockname()[0].partition("%")[0]).is_loopback


def run(service: Service, taken: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Serve until the process is told to stop (SIGINT, SIGTERM); requests that run then may finish, for a while.

    Args:
        service: what answers.
        taken: where (:func:`listen`).
        ready: called once callers are let in; where it raises, the service ends.

    Raises:
        UsageError: somebody else listens there meanwhile.
        Exception: what ``ready`` raises.
    """
    taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # for who comes after, while connections fade away
    try:
        taken.listen()
    except OSError as error:
        raise _not_here(address_of(taken), error) from error
    config = uvicorn.Config(
        create_app(service), log_level="warning", access_log=False, lifespan="on", server_header=False,
        timeout_graceful_shutdown=service.settings.drain_seconds + _LAST_SECONDS,
    )  # fmt: skip
    server = _Server(config, service, ready)
    server.run(sockets=[taken])
    if server.unready is not None:
        raise server.unready


def _not_here(address: str, error: Exception) -> UsageError:
    reason = getattr(error, "strerror", None) or error
    return UsageError(f"can't listen at {address} ({reason}); choose another --host or --port")


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self.unready: Exception | None = None
        self._service = service
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            try:
                self._ready()
            except Exception as error:  # raised from here, it would be told as uvicorn's, and nothing be closed
                self.unready, self.should_exit = error, True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # uvicorn itself would cancel what still runs, and tell its callers nothing.
        closing = asyncio.ensure_future(self._close_late())
        try:
            await super().shutdown(sockets)
        finally:
            closing.cancel()

    async def _close_late(self) -> None:
        await asyncio.sleep(self._service.settings.drain_seconds)
        await asyncio.to_thread(self._service.close)
