"""What the Hub answers to those who read: models, lists of them, trees, commits, files."""

import hashlib
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlencode, urlsplit

from hub_server.state import Answer, Repo, Request, as_json, entry, refusal

if TYPE_CHECKING:
    from hub_server.server import HubServer


def find(hub: "HubServer", request: Request, repo: str, revision: str) -> tuple[str, dict[str, bytes]] | Answer:
    """A revision's commit and files, if the asker may see them."""
    if request.token is not None and not hub.knows(request.token):
        return refusal(401, None, "Invalid credentials in Authorization header")
    known = hub.repos.get(repo)
    if known is None or (known.private and not hub.may_read(request.token, repo)):
        return refusal(404 if request.token else 401, "RepoNotFound", "Repository not found")
    commit = known.resolve(revision)
    if commit is None:
        return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit, known.commits[commit]


def whoami(hub: "HubServer", request: Request) -> Answer:
    if request.token is None or not hub.knows(request.token):
        return refusal(401, None, "Invalid credentials in Authorization header")
    name = hub.users.get(request.token, "nobody")
    return as_json({"type": "user", "name": name, "orgs": [], "auth": {"type": "access_token"}})


def model_info(hub: "HubServer", request: Request, repo: str, revision: str = "main") -> Answer:
    found = find(hub, request, repo, revision)
    if isinstance(found, Answer):
        return found
    commit, files = found
    blobs = "blobs" in parse_qs(urlsplit(request.path).query)
    siblings = [_sibling(name, content, blobs) for name, content in sorted(files.items())]
    known = hub.repos[repo]
    extra = {"sha": commit, "siblings": siblings, "cardData": known.front_matter()}
    return as_json({**_summary(repo, known), **extra, **hub.overrides.get(repo, {})})


def _sibling(name: str, content: bytes, blobs: bool) -> dict[str, Any]:
    if not blobs:
        return {"rfilename": name}
    listed = entry(name, content)
    lfs = listed.get("lfs")
    pointer = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]} if lfs else None
    blob = {"rfilename": name, "size": listed["size"], "blobId": listed["oid"]}
    return {**blob, "lfs": pointer} if pointer else blob


def _summary(repo: str, known: Repo) -> dict[str, Any]:
    card = known.front_matter()
    base = card.get("base_model")
    relation = card.get("base_model_relation")
    tags = [str(tag) for tag in card.get("tags") or ()]
    tags += [str(card[name]) for name in ("library_name", "pipeline_tag") if card.get(name)]
    if base:
        tags += [f"base_model:{base}", *([f"base_model:{relation}:{base}"] if relation else [])]
    return {
        "_id": hashlib.sha1(repo.encode()).hexdigest()[:24], "id": repo, "modelId": repo,
        "author": repo.partition("/")[0], "private": known.private, "gated": "auto" if known.gated else False,
        "disabled": False, "tags": tags, "pipeline_tag": card.get("pipeline_tag"), "downloads": 0, "likes": 0,
        "lastModified": "2026-01-02T03:04:05.000Z", "createdAt": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip


def list_models(hub: "HubServer", request: Request) -> Answer:
    parts = urlsplit(request.path)
    query = parse_qs(parts.query)
    if request.token is not None and not hub.knows(request.token):
        return refusal(401, None, "Invalid credentials in Authorization header")
    rows = []
    for repo, known in sorted(hub.repos.items()):
        row = _summary(repo, known)
        wanted = set(query.get("filter", ()))
        if known.private and not hub.may_read(request.token, repo):
            continue
        if not wanted <= {*row["tags"]} or query.get("author", [row["author"]]) != [row["author"]]:
            continue
        if query.get("pipeline_tag", [row["pipeline_tag"]]) != [row["pipeline_tag"]]:
            continue
        rows.append({**row, **hub.overrides.get(repo, {})})
    limit = min(int(query.get("limit", ["1000"])[0]), hub.page_size)
    start = int(query.get("cursor", ["0"])[0])
    headers = {}
    if start + limit < len(rows):
        following = urlencode({**query, "cursor": [start + limit]}, doseq=True)
        headers["Link"] = f'<{hub.url}{parts.path}?{following}>; rel="next"'
    return as_json(rows[start : start + limit], **headers)


def tree(hub: "HubServer", request: Request, repo: str, revision: str) -> Answer:
    found = find(hub, request, repo, revision)
    if isinstance(found, Answer):
        return found
    return as_json([entry(name, content) for name, content in sorted(found[1].items())])


def paths_info(hub: "HubServer", request: Request, repo: str, revision: str) -> Answer:
    found = find(hub, request, repo, revision)
    if isinstance(found, Answer):
        return found
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return as_json([entry(name, content) for name, content in sorted(found[1].items()) if name in wanted])


def refs(hub: "HubServer", request: Request, repo: str) -> Answer:
    found = find(hub, request, repo, "main")
    if isinstance(found, Answer):
        return found
    known = hub.repos[repo]

    def listed(kind: str, names: dict[str, str]) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"refs/{kind}/{name}", "targetCommit": names[name]} for name in names]

    return as_json({"branches": listed("heads", known.refs), "tags": listed("tags", known.tags), "converts": []})


def commits(hub: "HubServer", request: Request, repo: str, revision: str) -> Answer:
    found = find(hub, request, repo, revision)
    if isinstance(found, Answer):
        return found
    known, commit, rows = hub.repos[repo], found[0], []
    while commit:
        rows.append(
            {"id": commit, "title": known.titles[commit], "message": "", "authors": [{"user": "user"}],
             "date": "2026-01-02T03:04:05.000Z"}
        )  # fmt: skip
        commit = known.parents[commit]
    return as_json(rows)


def resolve(hub: "HubServer", request: Request, repo: str, revision: str, name: str) -> Answer:
    found = find(hub, request, repo, revision)
    if isinstance(found, Answer):
        return found
    commit, files = found
    if hub.repos[repo].gated and not hub.may_read(request.token, repo):
        message = f"Access to model {repo} is restricted. You must have access to it and be authenticated."
        return refusal(403 if request.token else 401, "GatedRepo", message)
    headers = {"X-Repo-Commit": commit}
    if name not in files:
        missing = refusal(404, "EntryNotFound", "Entry not found")
        return Answer(404, missing.body, {**missing.headers, **headers})
    listed = entry(name, files[name])
    if "lfs" not in listed:
        return Answer(200, files[name], {**headers, "ETag": f'"{listed["oid"]}"'})
    large = {"X-Linked-ETag": f'"{listed["lfs"]["oid"]}"', "X-Linked-Size": str(len(files[name]))}
    target = f"{hub.files_url}/lfs/{listed['lfs']['oid']}?name={name}"
    return Answer(302, b"", {**headers, **large, "Location": target})


def large_file(hub: "HubServer", request: Request, oid: str) -> Answer:
    content = hub.large_file(oid)
    return Answer(404) if content is None else Answer(200, content, {"ETag": f'"{oid}"'})


REPO = r"(?P<repo>[^/]+/[^/]+)"
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
    ("GET", re.compile(r"/api/whoami-v2"), whoami),
    ("GET", re.compile(r"/api/models"), list_models),
    ("GET", re.compile(rf"/api/models/{REPO}"), model_info),
    ("GET", re.compile(rf"/api/models/{REPO}/revision/(?P<revision>[^/]+)"), model_info),
    ("GET", re.compile(rf"/api/models/{REPO}/tree/(?P<revision>[^/]+)"), tree),
    ("POST", re.compile(rf"/api/models/{REPO}/paths-info/(?P<revision>[^/]+)"), paths_info),
    ("GET", re.compile(rf"/api/models/{REPO}/refs"), refs),
    ("GET", re.compile(rf"/api/models/{REPO}/commits/(?P<revision>[^/]+)"), commits),
    ("GET", re.compile(rf"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)"), resolve),
    ("GET", re.compile(r"/lfs/(?P<oid>[0-9a-f]{64})"), large_file),
]
