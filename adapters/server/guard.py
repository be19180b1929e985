"""Who may send what: by which names, with the key, if there is one, and no more bytes than allowed."""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorary.adapters.server.problems import Refusal, answer_problem

_OPEN = frozenset({"/", "/health"})  # the page has a field for the key; a load balancer has none
_HOST = re.compile(r"(\[[0-9a-f:.]+\]|[^][:@/]*)(?::\d+)?")


class Guard:
    """Refuses requests by another name, without the key or too large, before anything of them is read.

    Args:
        app: what answers the others.
        api_key: what has to come as ``Authorization: Bearer``; None: nothing.
        max_bytes: the most bytes of a body.
        hosts: what may stand in the header ``Host``, before its port; None: anything.
    """

    def __init__(self, app: ASGIApp, api_key: str | None, max_bytes: int, hosts: Sequence[str] | None = None) -> None:
        self._app = app
        self._key = None if api_key is None else api_key.strip().encode()  # a file's line end fits into no header
        self._hosts = None if hosts is None else dict.fromkeys(host.lower() for host in hosts)
        self._most = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            response = await answer_problem(None, refusal)
            return await response(scope, receive, send)
        return await self._app(scope, self._limited(receive), send)

    def _refusal(self, path: str, headers: dict[bytes, bytes]) -> Refusal | None:
        if self._hosts is not None:
            host = _HOST.fullmatch(headers.get(b"host", b"").decode("latin-1").lower())
            if host is None or host[1] not in self._hosts:
                known = ", ".join(self._hosts)
                return Refusal(400, f"called by a name (Host) that isn't expected here: {known}", "invalid_host")
        if self._key is not None and path not in _OPEN:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            if scheme.lower() != b"bearer" or not hmac.compare_digest(token.strip(), self._key):
                return Refusal(
                    401, "expected the service's key as 'Authorization: Bearer KEY'", "invalid_api_key",
                    {"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
        length = headers.get(b"content-length", b"")
        if length.isdigit() and int(length) > self._most:
            return self._too_large()
        return None

    def _limited(self, receive: Receive) -> Receive:
        """A body that doesn't say how long it is is counted as it comes."""
        taken = 0

        async def counted() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self._most:
                raise self._too_large()
            return message

        return counted

    def _too_large(self) -> Refusal:
        return Refusal(413, f"the request is larger than {self._most} bytes; send less at once", "too_large")
