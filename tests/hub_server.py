"""A small Hugging Face Hub on 127.0.0.1, for the real client: model info, trees and downloads, and ways to fail.

Two ports, as the Hub has two hosts: one answers for repositories, the other hands out large files, to which the first
redirects. ``ROUTES`` is the list of what is understood; :meth:`HubServer.commit` is how a repository changes.
"""

import hashlib
import json
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE_FILES = (".safetensors", ".bin")
"""What the Hub keeps as LFS objects, by the end of the name."""


@dataclass
class Repo:
    """A model repository: the files of each commit, and the branches and tags that name commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    token: str | None


@dataclass
class Fault:
    """What goes wrong with requests that fit: an error status, or a body that ends after ``keep`` bytes.

    ``broken`` bodies announce their full length and the connection ends; others announce what they hold. ``times`` is
    how often it still happens, None for always.
    """

    method: str
    path: re.Pattern[str]
    status: int | None = None
    keep: int | None = None
    broken: bool = False
    times: int | None = None


@dataclass(frozen=True)
class Answer:
    """A response; without an explicit type a body is JSON."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def refusal(status: int, code: str | None, message: str) -> Answer:
    """An error as the Hub words it."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, json.dumps({"error": message}).encode(), headers)


class HubServer:
    """The server; a context manager. ``tokens`` maps each valid token to the repositories that it may read."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, set[str]] = {}
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self._lock = Lock()
        self._listeners = [_Listener(self), _Listener(self)]
        self.url, self.files_url = (f"http://127.0.0.1:{listener.server_port}" for listener in self._listeners)

    def __enter__(self) -> "HubServer":
        for listener in self._listeners:
            Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # For tests

    def stop(self) -> None:
        """Be out of reach, also on connections that are open; a second call does nothing."""
        for listener in self._listeners:
            listener.shutdown()
            listener.server_close()
            listener.hang_up()

    def commit(self, name: str, files: Mapping[str, bytes], *, branch: str = "main") -> str:
        """Make ``files`` the content of a branch (and the repository, if there is none); returns the commit."""
        repo = self.repos.setdefault(name, Repo())
        content = json.dumps([name, len(repo.commits), sorted(files)])
        commit = hashlib.sha1(content.encode()).hexdigest()
        repo.commits[commit] = dict(files)
        repo.refs[branch] = commit
        return commit

    def commit_folder(self, name: str, folder: Path, *, branch: str = "main", **more: bytes) -> str:
        """:meth:`commit` with the files of a folder, and ``more`` files besides."""
        files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        return self.commit(name, files | more, branch=branch)

    def fail(self, method: str, path: str, **how: Any) -> Fault:
        """Let requests of ``method`` whose path holds the regular expression ``path`` go wrong (see :class:`Fault`)."""
        fault = Fault(method, re.compile(path), **how)
        self.faults.append(fault)
        return fault

    def downloaded(self) -> set[str]:
        """The names of the files whose content was asked for, by whatever of its two ways."""
        paths = [request.path for request in self.requests if request.method == "GET"]
        return {path.partition("/resolve/")[2].partition("/")[2] for path in paths if "/resolve/" in path} | {
            path.partition("?name=")[2] for path in paths if path.startswith("/lfs/")
        }

    # Answering

    def answer(self, request: Request) -> Answer:
        """What the Hub says, before anything goes wrong."""
        path = urlsplit(request.path).path
        for method, pattern, route in ROUTES:
            if request.method in (method, "HEAD" if method == "GET" else method) and (found := pattern.fullmatch(path)):
                return route(self, request, **{name: unquote(value) for name, value in found.groupdict().items()})
        return refusal(404, None, f"no route for {request.method} {path}")

    def take_fault(self, request: Request) -> Fault | None:
        """Note a request, and find what is to go wrong with it."""
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.method == request.method and fault.path.search(request.path) and fault.times != 0:
                    fault.times = fault.times - 1 if fault.times else None
                    return fault
        return None

    def find(self, request: Request, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | Answer:
        """A revision's commit and files, if the asker may see them."""
        if request.token is not None and request.token not in self.tokens:
            return refusal(401, None, "Invalid credentials in Authorization header")
        known = self.repos.get(repo)
        if known is None or (known.private and not self._may_read(request, repo)):
            return refusal(404 if request.token else 401, "RepoNotFound", "Repository not found")
        commit = known.refs.get(revision, revision)
        if commit not in known.commits:
            return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit, known.commits[commit]

    def _may_read(self, request: Request, repo: str) -> bool:
        return request.token is not None and repo in self.tokens[request.token]

    # Routes

    def model_info(self, request: Request, repo: str, revision: str = "main") -> Answer:
        found = self.find(request, repo, revision)
        if isinstance(found, Answer):
            return found
        commit, files = found
        known = self.repos[repo]
        return _json(
            {
                "_id": commit[:24], "id": repo, "modelId": repo, "author": repo.partition("/")[0], "sha": commit,
                "private": known.private, "gated": "auto" if known.gated else False, "disabled": False, "tags": [],
                "downloads": 0, "likes": 0, "siblings": [{"rfilename": name} for name in sorted(files)],
            }
        )  # fmt: skip

    def tree(self, request: Request, repo: str, revision: str) -> Answer:
        found = self.find(request, repo, revision)
        if isinstance(found, Answer):
            return found
        return _json([_entry(name, content) for name, content in sorted(found[1].items())])

    def resolve(self, request: Request, repo: str, revision: str, name: str) -> Answer:
        found = self.find(request, repo, revision)
        if isinstance(found, Answer):
            return found
        commit, files = found
        if self.repos[repo].gated and not self._may_read(request, repo):
            message = f"Access to model {repo} is restricted. You must have access to it and be authenticated."
            return refusal(403 if request.token else 401, "GatedRepo", message)
        headers = {"X-Repo-Commit": commit}
        if name not in files:
            missing = refusal(404, "EntryNotFound", "Entry not found")
            return Answer(404, missing.body, {**missing.headers, **headers})
        entry = _entry(name, files[name])
        if "lfs" not in entry:
            return Answer(200, files[name], {**headers, "ETag": f'"{entry["oid"]}"'})
        large = {"X-Linked-ETag": f'"{entry["lfs"]["oid"]}"', "X-Linked-Size": str(len(files[name]))}
        target = f"{self.files_url}/lfs/{entry['lfs']['oid']}?name={name}"
        return Answer(302, b"", {**headers, **large, "Location": target})

    def large_file(self, request: Request, oid: str) -> Answer:
        for repo in self.repos.values():
            for files in repo.commits.values():
                for content in files.values():
                    if hashlib.sha256(content).hexdigest() == oid:
                        return Answer(200, content, {"ETag": f'"{oid}"'})
        return Answer(404)


_REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
    ("GET", re.compile(rf"/api/models/{_REPO}"), HubServer.model_info),
    ("GET", re.compile(rf"/api/models/{_REPO}/revision/(?P<revision>[^/]+)"), HubServer.model_info),
    ("GET", re.compile(rf"/api/models/{_REPO}/tree/(?P<revision>[^/]+)"), HubServer.tree),
    ("GET", re.compile(rf"/{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)"), HubServer.resolve),
    ("GET", re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})"), HubServer.large_file),
]


def _json(value: Any) -> Answer:
    return Answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as a tree lists it; its oid is git's hash of it, or of its pointer."""
    if not name.endswith(LARGE_FILES):
        return {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "path": name, "size": len(content), "oid": _git_hash(pointer), "lfs": lfs}


def _git_hash(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: "_Listener"

    def do_GET(self) -> None:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ") or None
        request = Request(self.command, self.path, token)
        hub = self.server.hub
        fault = hub.take_fault(request)
        if fault is not None and fault.status is not None:
            self._send(Answer(fault.status, b"no\n"))
        else:
            self._send(hub.answer(request), fault)

    do_HEAD = do_GET

    def _send(self, answer: Answer, fault: Fault | None = None) -> None:
        body, headers, status = answer.body, dict(answer.headers), answer.status
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if wanted and status == 200:
            start, status = int(wanted[1]), 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            body = body[start:]
        sent = body if fault is None or fault.keep is None else body[: fault.keep]
        broken = fault is not None and fault.broken
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body if broken else sent))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(sent)
        self.close_connection = self.close_connection or broken

    def log_message(self, format: str, *args: Any) -> None:
        """Keep stderr for what is under test."""


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
