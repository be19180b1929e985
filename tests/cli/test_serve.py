"""`lorary serve` as a process: it says where it is, answers, and ends as it is told to."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.error
import urllib.request

import psutil
import pytest
import torch

from http_service import eventually
from lorary.adapters import Backbone
from lorary.hub import Registry
from lorary.hub.cli.main import main
from lorary.hub.manifest import Manifest
from tiny import make_adapter, make_base


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    """Two classifiers of one base, and a writer of another."""
    torch.set_num_threads(1)
    place = tmp_path_factory.mktemp("serve")
    registry = Registry(place / "registry.db")
    for name, family, task in (
        ("tone", "bert", "text-classification"), ("spam", "bert", "text-classification"),
        ("writer", "llama", "text-generation"),
    ):  # fmt: skip
        base = place / family
        if not base.exists():
            make_base(family, base)
        make_adapter(base, place / name, task=task, seed=len(name))
        Manifest(task=task, base=Backbone.from_pretrained(str(base)).identity).write(place / name)
        registry.add(place / name, name=name, domain="tests")
    return registry


class Process:
    """A service in a process of its own, once it has said where it is."""

    def __init__(self, running):
        self.running, self.ended = running, False
        while not self.wrote().endswith("\n") and self.lives():
            time.sleep(0.01)
        self.first = self.wrote()
        assert self.first, self.end(signal.SIGKILL)
        self.address = re.search(r"http://\S+", self.first)[0]

    def wrote(self):
        return (self.running.folder / "out").read_text()

    def lives(self):
        return psutil.Process(self.running.pid).status() != psutil.STATUS_ZOMBIE

    def call(self, path, body=None, **headers):
        request = urllib.request.Request(
            self.address + path, None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"} | headers,
        )  # fmt: skip
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)

    def end(self, number):
        os.kill(self.running.pid, number)
        eventually(lambda: not self.lives())
        self.ended = True
        ended = self.running.wait()
        return ended.code, ended.out, ended.err

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if not self.ended:
            self.end(signal.SIGKILL)


@pytest.fixture
def serve(forks):
    """`lorary serve` with these words, in a process that has imported what it needs."""

    def start(*words):
        return Process(forks.start("lorary.hub.cli.main:main", ["serve", "--port", "0", *map(str, words)]))

    return start


@pytest.fixture
def fails(capsys):
    """Run `lorary serve` in this process, where it ends before it serves; gives back its error."""

    def run(*words, code=2):
        assert main(["serve", *map(str, words)]) == code
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert "Traceback" not in err
        return err

    return run


def test_it_serves_what_is_named_to_who_has_the_key_and_ends_by_ctrl_c(registry, forks):
    command = [sys.executable, "-m", "lorary.hub.cli", "serve", "tone@1", "spam", "--port", "0"]
    command += ["--registry", str(registry.path)]
    fresh = forks.start("os:execv", sys.executable, command, LORARY_API_KEY="secret")
    with Process(fresh) as service:
        assert re.fullmatch(r"Serving tone@1, spam on bert at http://127\.0\.0\.1:\d+\n", service.first)
        body = {"model": ["tone@1", "spam"], "inputs": ["profit", "win"]}
        with pytest.raises(urllib.error.HTTPError, match="401"):
            service.call("/v1/predict", body)
        assert len(service.call("/v1/predict", body, Authorization="Bearer secret")["predictions"]) == 2
        code, out, err = service.end(signal.SIGINT)
        assert (code, out, err) == (0, service.first + "Stopped.\n", "")


def test_an_adapter_of_the_base_s_own_name_is_told_of(registry, tmp_path, monkeypatch, capsys):
    own = Registry(tmp_path / "own.db")
    for name in ("tone", "bert"):
        own.add(registry.checkpoint("tone"), name=name, domain="tests")
    monkeypatch.setattr("lorary.adapters.server.run", lambda service, taken, ready: ready())
    words = ["serve", "--port", "0", "--base", registry.path.parent / "bert", "--registry", own.path]
    told = "note: bert means the base without an adapter; the adapter of that name is bert@1 here\n"
    for references, note in ([], told), (["tone"], ""):
        assert main(list(map(str, [*words, *references]))) == 0
        captured = capsys.readouterr()
        assert captured.err == note
        assert captured.out.startswith(f"Serving {'tone' if references else 'bert@1, tone'} on bert at")


def test_a_text_that_is_being_written_is_finished_when_it_is_told_to_end(registry, serve):
    with serve("--base", registry.resolve("writer").base_id, "--registry", registry.path) as service:
        assert "Serving writer on llama at" in service.first
        answers = []
        body = {"model": "writer", "prompt": "story", "max_tokens": 60, "n": 16, "temperature": 2.0}

        def ask():
            answers.append(service.call("/v1/completions", body))

        code, err = end_while_writing(service, ask)
        assert len(answers[0]["choices"]) == 16
        assert code == -signal.SIGTERM
        assert err == ""


def end_while_writing(service, ask):
    """Tell a service to end while it writes for ``ask``; its exit code and what it complained of."""
    asking = threading.Thread(target=ask)
    asking.start()
    eventually(lambda: running(service))
    code, _, err = service.end(signal.SIGTERM)
    asking.join()
    return code, err


IMPATIENT = """
import sys, time
from lorary.adapters import Backbone
from lorary.adapters.server import Service, ServiceSettings, listen, run
from lorary.adapters.server.running import address_of
backbone = Backbone.from_pretrained({base!r})
step = backbone.model.forward
backbone.model.forward = lambda *given, **named: time.sleep(0.1) or step(*given, **named)
with listen("127.0.0.1", 0) as taken:
    service = Service(backbone, settings=ServiceSettings(drain_seconds=1))
    run(service, taken, lambda: print(address_of(taken), flush=True))
"""


def test_a_text_that_takes_too_long_is_told_that_the_service_has_stopped(registry, forks):
    code = IMPATIENT.format(base=str(registry.path.parent / "llama"))
    with Process(forks.start("builtins:exec", code, {"__name__": "__main__"})) as service:
        told = []

        def ask():
            with pytest.raises(urllib.error.HTTPError) as raised:
                service.call("/v1/completions", {"model": "llama", "prompt": "story", "max_tokens": 60})
            told.append((raised.value.code, json.load(raised.value)["error"]["message"]))

        code, err = end_while_writing(service, ask)
        assert told == [(503, "the engine was closed; open another one")]
        assert code == -signal.SIGTERM
        assert "Traceback" not in err


def running(service):
    with urllib.request.urlopen(service.address + "/metrics", timeout=10) as answer:
        found = re.search(r"^lorary_requests_running (\S+)$", answer.read().decode(), re.MULTILINE)
    return float(found[1]) > 0


def test_where_it_says_that_it_is_it_answers(registry, serve):
    """Also at an address of this machine alone that isn't the usual one."""
    with serve("tone", "--registry", registry.path, "--host", "127.0.0.2") as service:
        assert service.address.startswith("http://127.0.0.2:")
        assert service.call("/health") == {"status": "ok"}


def test_a_port_that_is_taken_is_told_before_anything_is_loaded(registry, fails):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = fails("--base", "no/such-base", "--port", port, "--registry", registry.path)
        assert f"can't listen at 127.0.0.1:{port}" in told


FULL = """
import os
from lorary.hub.cli.main import main
os.dup2(os.open("/dev/full", os.O_WRONLY), 1)
raise SystemExit(main({words!r}))
"""


def test_where_it_is_has_to_be_told(registry, forks):
    """On a full disk nobody would learn it: it ends in order, and says why."""
    code = FULL.format(words=["serve", "tone", "--port", "0", "--registry", str(registry.path)])
    ended = forks.run("builtins:exec", code, {"__name__": "__main__"})
    assert ended.err == "lorary: error: no space left (No space left on device); free some, and run the command again\n"
    assert ended.code == 1


def test_what_ends_before_it_serves(registry, fails, tmp_path, monkeypatch):
    assert "the catalogue has adapters of" in fails("--registry", registry.path)
    assert "holds no adapter that names its base" in fails("--registry", tmp_path / "none.db")
    assert "no adapter named 'tune'" in fails("tune", "--registry", registry.path, code=1)
    assert "trained on" in fails("tone", "writer", "--port", 0, "--registry", registry.path, code=1)
    assert "no/such-base" in fails("--base", "no/such-base", "--port", 0, "--registry", registry.path, code=1)
    assert "--port" in fails("--port", 70000)
    assert "expected one of float32, bfloat16" in fails("tone", "--adapter-dtype", "half", "--registry", registry.path)
    monkeypatch.setenv("LORARY_API_KEY", " ")
    assert "$LORARY_API_KEY is empty" in fails("tone", "--registry", registry.path)


def test_without_the_extra(registry, fails, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'lorary[serve]'" in fails("tone", "--registry", registry.path, code=1)
