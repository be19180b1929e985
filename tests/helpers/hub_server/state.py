"""What the Hub holds, and what goes over the wire."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

LARGE_FILES = (".safetensors", ".bin")
"""What the Hub keeps as LFS objects, by the end of the name."""


@dataclass
class Repo:
    """A model repository: the files of each commit (oldest first), and the branches and tags that name commits."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    parents: dict[str, str | None] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    private: bool = False
    gated: bool = False

    def add(self, name: str, files: Mapping[str, bytes], branch: str = "main", title: str = "Upload") -> str:
        """A commit with these files on a branch; returns its id."""
        content = json.dumps([name, len(self.commits), {path: git_hash(files[path]) for path in sorted(files)}])
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[commit] = dict(files)
        self.parents[commit] = self.refs.get(branch)
        self.titles[commit] = title
        self.refs[branch] = commit
        return commit

    def resolve(self, revision: str) -> str | None:
        """The commit that a branch, a tag or a commit's own id names."""
        commit = self.refs.get(revision) or self.tags.get(revision) or revision
        return commit if commit in self.commits else None

    def front_matter(self) -> dict[str, Any]:
        """The metadata of the card on main."""
        commit = self.refs.get("main")
        text = self.commits[commit].get("README.md", b"").decode() if commit else ""
        found = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL)
        try:
            values = yaml.safe_load(found[1]) if found else None
        except (yaml.YAMLError, RecursionError):
            return {}
        return values if isinstance(values, dict) else {}


@dataclass(frozen=True)
class Request:
    """A request as it came in."""

    method: str
    path: str
    token: str | None
    body: bytes = b""


@dataclass
class Fault:
    """What goes wrong with requests that fit: an error status, or a body that ends after ``keep`` bytes.

    ``broken`` bodies announce their full length and the connection ends; others announce what they hold. ``corrupt``
    bodies, asked or answered, have their full length and a wrong last byte; with ``pack`` the body is that, compressed.
    ``headers`` come on top of the answer's. ``cut`` ends the connection without an
    answer: ``before`` or ``after`` the request took effect, and ``call`` is called then. With ``stall`` the connection
    stays, but nothing comes after ``keep`` bytes; without those the request takes no effect. ``skip`` lets that many
    pass first; ``times`` is how often it still happens, None for always.
    """

    method: str
    path: re.Pattern[str]
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    keep: int | None = None
    broken: bool = False
    pack: bytes | None = None
    stall: bool = False
    corrupt: bool = False
    cut: str | None = None
    call: Callable[[], object] = lambda: None
    skip: int = 0
    times: int | None = None

    def takes(self, request: Request) -> bool:
        """Count the request; True when it is to go wrong."""
        if not re.fullmatch(self.method, request.method) or not self.path.search(request.path) or self.times == 0:
            return False
        if self.skip:
            self.skip -= 1
            return False
        self.times = self.times - 1 if self.times else None
        return True


@dataclass(frozen=True)
class Answer:
    """A response; without an explicit type a body is JSON."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


def as_json(value: Any, status: int = 200, **headers: str) -> Answer:
    """A value as a response."""
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **headers})


def refusal(status: int, code: str | None, message: str) -> Answer:
    """An error as the Hub words it."""
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return Answer(status, json.dumps({"error": message}).encode(), headers)


def entry(name: str, content: bytes) -> dict[str, Any]:
    """A file as a tree lists it; its oid is git's hash of it, or of its pointer."""
    if not name.endswith(LARGE_FILES):
        return {"type": "file", "path": name, "size": len(content), "oid": git_hash(content)}
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    lfs = {"oid": sha256, "size": len(content), "pointerSize": len(pointer)}
    return {"type": "file", "path": name, "size": len(content), "oid": git_hash(pointer), "lfs": lfs}


def git_hash(content: bytes) -> str:
    """The id of a file in git."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
