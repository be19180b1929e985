"""What the Hub answers to those who write: repositories, uploads, commits, tags."""

import base64
import hashlib
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import yaml

from hub_server.reading import REPO, find
from hub_server.state import LARGE_FILES, Answer, Repo, Request, as_json, entry, refusal

if TYPE_CHECKING:
    from hub_server.server import HubServer


def may_write(hub: "HubServer", request: Request, repo: str) -> Answer | None:
    """Why not, or None."""
    if request.token is None or not hub.knows(request.token):
        return refusal(401, None, "Invalid credentials in Authorization header")
    if repo.partition("/")[0] != hub.users.get(request.token):
        return refusal(403, None, "Forbidden: you don't have the rights to write to this namespace")
    if repo not in hub.repos:
        return refusal(404, "RepoNotFound", "Repository not found")
    return None


def create_repo(hub: "HubServer", request: Request) -> Answer:
    wanted = json.loads(request.body)
    owner = wanted.get("organization") or hub.users.get(request.token or "")
    repo = f"{owner}/{wanted['name']}"
    url = f"{hub.url}/{repo}"
    if repo in hub.repos:
        return as_json({"error": "You already created this model repo", "url": url}, 409)
    denied = may_write(hub, request, repo)
    if denied is not None and denied.status != 404:
        return denied
    hub.repos[repo] = Repo(private=wanted.get("visibility") == "private")
    hub.repos[repo].add(repo, {".gitattributes": b"*.safetensors filter=lfs\n"}, title="initial commit")
    return as_json({"url": url})


def delete_repo(hub: "HubServer", request: Request) -> Answer:
    wanted = json.loads(request.body)
    repo = f"{wanted['organization']}/{wanted['name']}"
    if denied := may_write(hub, request, repo):
        return denied
    del hub.repos[repo]
    return as_json({})


def validate_yaml(hub: "HubServer", request: Request) -> Answer:
    content = json.loads(request.body)["content"]
    found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    try:
        values = yaml.safe_load(found[1]) if found else {}
        problem = None if isinstance(values, dict) else "metadata must be an object"
    except yaml.YAMLError as error:
        problem = str(error)
    if problem:
        return as_json({"errors": [{"message": problem}], "warnings": []}, 400)
    return as_json({"errors": [], "warnings": []})


def preupload(hub: "HubServer", request: Request, repo: str, revision: str) -> Answer:
    if denied := may_write(hub, request, repo):
        return denied
    found = find(hub, request, repo, revision)
    if isinstance(found, Answer):
        return found

    def mode(file: dict[str, Any]) -> dict[str, Any]:
        name = file["path"]
        large = name.endswith(LARGE_FILES)
        row = {"path": name, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if name in found[1]:
            listed = entry(name, found[1][name])
            row["oid"] = listed["lfs"]["oid"] if large else listed["oid"]
        return row

    return as_json({"files": [mode(file) for file in json.loads(request.body)["files"]]})


def lfs_batch(hub: "HubServer", request: Request, repo: str) -> Answer:
    if denied := may_write(hub, request, repo):
        return denied
    objects = []
    for wanted in json.loads(request.body)["objects"]:
        oid = wanted["oid"]
        row = {"oid": oid, "size": wanted["size"]}
        if hub.large_file(oid) is None:
            verify = f"{hub.url}/{repo}.git/info/lfs/objects/verify"
            row["actions"] = {"upload": {"href": f"{hub.files_url}/upload/{oid}"}, "verify": {"href": verify}}
        objects.append(row)
    return as_json({"transfer": "basic", "objects": objects})


def upload(hub: "HubServer", request: Request, oid: str) -> Answer:
    hub.objects[oid] = request.body
    return Answer(200)


def lfs_verify(hub: "HubServer", request: Request, repo: str) -> Answer:
    wanted = json.loads(request.body)
    content = hub.objects.get(wanted["oid"])
    if content is None or hashlib.sha256(content).hexdigest() != wanted["oid"] or len(content) != wanted["size"]:
        hub.objects.pop(wanted["oid"], None)
        return refusal(400, None, "the uploaded object isn't what was announced")
    return Answer(200)


def commit(hub: "HubServer", request: Request, repo: str, revision: str) -> Answer:
    if denied := may_write(hub, request, repo):
        return denied
    known = hub.repos[repo]
    header, *operations = [json.loads(line) for line in request.body.splitlines()]
    with hub.lock:
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != known.refs[revision]:
            return refusal(412, None, "A commit has happened since. Please refresh and try again.")
        files = dict(known.commits[known.refs[revision]])
        for operation in operations:
            kind, value = operation["key"], operation["value"]
            name = value["path"]
            if kind == "file":
                files[name] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                content = hub.large_file(value["oid"])
                if content is None:
                    return refusal(400, None, f"LFS pointer of {name} points to a file that does not exist")
                files[name] = content
            elif name not in files:
                return refusal(404, "EntryNotFound", "A file with this name doesn't exist")
            else:
                del files[name]
        made = known.add(repo, files, revision, header["value"]["summary"])
    return as_json({"success": True, "commitOid": made, "commitUrl": f"{hub.url}/{repo}/commit/{made}"})


def create_tag(hub: "HubServer", request: Request, repo: str, revision: str) -> Answer:
    if denied := may_write(hub, request, repo):
        return denied
    known, tag = hub.repos[repo], json.loads(request.body)["tag"]
    target = known.resolve(revision)
    if target is None:
        return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    if tag in known.tags:
        return refusal(409, None, f"Tag reference exists already: {tag}")
    known.tags[tag] = target
    return as_json({})


def delete_tag(hub: "HubServer", request: Request, repo: str, revision: str) -> Answer:
    if denied := may_write(hub, request, repo):
        return denied
    if hub.repos[repo].tags.pop(revision, None) is None:
        return refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return as_json({})


ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
    ("POST", re.compile(r"/api/repos/create"), create_repo),
    ("DELETE", re.compile(r"/api/repos/delete"), delete_repo),
    ("POST", re.compile(r"/api/validate-yaml"), validate_yaml),
    ("POST", re.compile(rf"/api/models/{REPO}/preupload/(?P<revision>[^/]+)"), preupload),
    ("POST", re.compile(rf"/{REPO}\.git/info/lfs/objects/batch"), lfs_batch),
    ("POST", re.compile(rf"/{REPO}\.git/info/lfs/objects/verify"), lfs_verify),
    ("PUT", re.compile(r"/upload/(?P<oid>[0-9a-f]{64})"), upload),
    ("POST", re.compile(rf"/api/models/{REPO}/commit/(?P<revision>[^/]+)"), commit),
    ("POST", re.compile(rf"/api/models/{REPO}/tag/(?P<revision>[^/]+)"), create_tag),
    ("DELETE", re.compile(rf"/api/models/{REPO}/tag/(?P<revision>[^/]+)"), delete_tag),
]
