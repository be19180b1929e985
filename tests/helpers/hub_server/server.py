"""The server itself: two listeners, and the faults that requests run into."""

import gzip
import hashlib
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from hub_server import reading, writing
from hub_server.state import Answer, Fault, Repo, Request, refusal

ROUTES = [*reading.ROUTES, *writing.ROUTES]


class HubServer:
    """The server; a context manager.

    ``tokens`` maps a valid token to the repositories that it may read, ``users`` one to the user whose repositories it
    may read and write. ``overrides`` changes fields of what is told about a repository: a Hub that lies.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, set[str]] = {}
        self.users: dict[str, str] = {}
        self.objects: dict[str, bytes] = {}
        self.overrides: dict[str, dict[str, Any]] = {}
        self.page_size = 1000
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.lock = Lock()
        self.stopped = Event()
        self._noting = Lock()
        self._listeners = [_Listener(self), _Listener(self)]
        # Large files are on another host, as they are on the Hub; some clients tell hosts apart by their names alone.
        self.url, self.files_url = (
            f"http://{host}:{listener.server_port}"
            for host, listener in zip(("127.0.0.1", "localhost"), self._listeners, strict=True)
        )

    def __enter__(self) -> "HubServer":
        for listener in self._listeners:
            Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # For tests

    def stop(self) -> None:
        """Be out of reach, also on connections that are open; a second call does nothing."""
        self.stopped.set()
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
            listener.hang_up()

    def commit(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Make ``files`` the content of a branch (and the repository, if there is none); returns the commit."""
        return self.repos.setdefault(name, Repo()).add(name, files, branch)

    def commit_folder(self, name: str, folder: Path, *, branch: str = "main", **more: bytes) -> str:
        """:meth:`commit` with the files of a folder, and ``more`` files besides."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.commit(name, files | more, branch=branch)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a revision."""
        repo = self.repos[name]
        return repo.commits[repo.resolve(revision) or ""]

    def fail(self, method: str, path: str, **how: Any) -> Fault:
        """Let requests go wrong (see :class:`Fault`) whose path holds the regular expression ``path``."""
        fault = Fault(method, re.compile(path), **how)
        self.faults.append(fault)
        return fault

    def downloaded(self) -> set[str]:
        """The names of the files whose content was asked for, by whatever of its two ways."""
        paths = [request.path for request in self.requests if request.method == "GET"]
        return {path.partition("/resolve/")[2].partition("/")[2] for path in paths if "/resolve/" in path} | {
            path.partition("?name=")[2] for path in paths if path.startswith("/lfs/")
        }

    def asked(self, method: str, path: str) -> int:
        """How many requests fit."""
        return sum(1 for one in self.requests if one.method == method and re.search(path, one.path))

    # Answering

    def knows(self, token: str) -> bool:
        """Is this a valid token?"""
        return token in self.tokens or token in self.users

    def may_read(self, token: str | None, repo: str) -> bool:
        """May the bearer of the token read a private or gated repository?"""
        return token is not None and (
            repo in self.tokens.get(token, ()) or repo.partition("/")[0] == self.users.get(token)
        )

    def large_file(self, oid: str) -> bytes | None:
        """An LFS object: of a commit, or uploaded for one."""
        if oid in self.objects:
            return self.objects[oid]
        for repo in self.repos.values():
            for files in repo.commits.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == oid:
                        return content
        return None

    def answer(self, request: Request) -> Answer:
        """What the Hub says, before anything goes wrong."""
        path = urlsplit(request.path).path
        for method, pattern, route in ROUTES:
            if request.method in (method, "HEAD" if method == "GET" else method) and (found := pattern.fullmatch(path)):
                return route(self, request, **{name: unquote(value) for name, value in found.groupdict().items()})
        return refusal(404, None, f"no route for {request.method} {path}")

    def take_fault(self, request: Request) -> Fault | None:
        """Note a request, and find what is to go wrong with it."""
        with self._noting:
            self.requests.append(request)
            return next((fault for fault in self.faults if fault.takes(request)), None)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Listener"

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, self.path, token, self._body())
        hub = self.server.hub
        fault = hub.take_fault(request)
        if fault is not None and fault.cut == "before":
            fault.call()
            self._hang_up()
        elif fault is not None and fault.stall and fault.keep is None:
            hub.stopped.wait()
            self._hang_up()
        elif fault is not None and fault.status is not None:
            self._send(Answer(fault.status, b"no\n", fault.headers))
        else:
            if fault is not None and fault.corrupt and request.body:
                request = replace(request, body=_spoiled(request.body))
            answer = hub.answer(request)
            if fault is not None:
                answer = _changed(answer, fault)
            if fault is not None:
                fault.call()
            if fault is not None and fault.cut == "after":
                self._hang_up()
            else:
                self._send(answer, fault)

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while length := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(length))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _send(self, answer: Answer, fault: Fault | None = None) -> None:
        body, headers, status = answer.body, dict(answer.headers), answer.status
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and status == 200:
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        if fault is not None and fault.corrupt and body:
            body = _spoiled(body)
        sent = body if fault is None or fault.keep is None else body[: fault.keep]
        broken = fault is not None and (fault.broken or fault.stall)
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body if broken else sent))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        if fault is not None and fault.stall:
            self.server.hub.stopped.wait()
        self.close_connection = self.close_connection or broken

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr for what is under test."""


def _changed(answer: Answer, fault: Fault) -> Answer:
    headers = {**answer.headers, **fault.headers}
    if fault.pack is None:
        return replace(answer, headers=headers)
    return replace(answer, headers={**headers, "Content-Encoding": "gzip"}, body=gzip.compress(fault.pack, 1))


def _spoiled(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


class _Listener(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self._connections: list[socket.socket] = []

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        self._connections.append(connection)
        return connection, address

    def hang_up(self) -> None:
        for connection in self._connections:
            with suppress(OSError):  # most are closed already
                connection.shutdown(socket.SHUT_RDWR)
