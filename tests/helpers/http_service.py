"""lorary's HTTP service in a thread of the test's process, and a caller of it, over real sockets."""

import asyncio
import http.client
import json
import threading
import time
from contextlib import contextmanager

import uvicorn

from lorary.adapters import Backbone
from lorary.adapters.server import Service, ServiceSettings, create_app, listen
from lorary.hub import Registry
from lorary.hub.manifest import Manifest, Prompt
from tiny import make_adapter

TEXTS, CHATS = "/v1/completions", "/v1/chat/completions"


def serving_writer(base, place, **engine):
    """A service with one adapter that writes texts, ``writer``, on this base; its chats are their turns' texts."""
    registry = Registry(place / "registry.db")
    backbone = Backbone.from_pretrained(str(base), registry=registry)
    make_adapter(base, place / "writer", task="text-generation", r=4)
    prompt = Prompt("chat", chat_template="{% for m in messages %}{{ m.content }}{% endfor %}")
    Manifest(task="text-generation", base=backbone.identity, prompt=prompt).write(place / "writer")
    registry.add(place / "writer", name="writer", domain="tests")
    return Service(backbone, settings=ServiceSettings(engine=engine))


def written(choice):
    """The text of an answer's choice, of a completion or a chat."""
    return choice["text"] if "text" in choice else choice["message"]["content"]


def piece(choice):
    """The same of a stream's event."""
    return choice["text"] if "text" in choice else choice["delta"].get("content", "")


class Caller:
    """Sends requests to one service."""

    def __init__(self, address, key=None):
        self.address = address
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})

    def send(self, method, path, body=None, headers=None):
        """A response, still to be read, and its connection."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        text = body if body is None or isinstance(body, (bytes, str)) else json.dumps(body)
        connection.request(method, path, text, self.headers | (headers or {}))
        return connection.getresponse(), connection

    def send_only(self, path, body):
        """The connection of a request whose answer nobody waits for."""
        connection = http.client.HTTPConnection(*self.address, timeout=30)
        connection.request("POST", path, json.dumps(body), self.headers)
        return connection

    def call(self, path, body=None, *, code=200, headers=None):
        """What a path answers: JSON where it is that, else text."""
        response, connection = self.send("GET" if body is None else "POST", path, body, headers)
        text = response.read().decode()
        connection.close()
        assert response.status == code, text
        return json.loads(text) if response.headers.get_content_type() == "application/json" else text

    def problem(self, path, body=None, *, code=400, **more):
        """The message of an error."""
        told = self.call(path, body, code=code, **more)["error"]
        assert set(told) == {"message", "type", "param", "code"}
        return told["message"]

    def events(self, path, body):
        """The events of a stream, as they come."""
        response, connection = self.send("POST", path, body | {"stream": True})
        assert response.status == 200, response.read()
        assert response.headers.get_content_type() == "text/event-stream"
        for line in response:
            if line.startswith(b"data: "):
                yield line.removeprefix(b"data: ").decode().strip()
        connection.close()


def slow_down(monkeypatch, engine):
    """Let each step take long enough for a caller to go away meanwhile."""
    chooser = type(engine._chooser)
    choose = chooser.__call__

    def slowly(self, *given):
        time.sleep(0.05)
        return choose(self, *given)

    monkeypatch.setattr(chooser, "__call__", slowly)


def eventually(condition):
    """Wait until it is so, or fail."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


class Attentive(uvicorn.Server):
    """Sees at once that it is to end: uvicorn looks every tenth of a second."""

    async def main_loop(self):
        while not await self.on_tick(0):
            await asyncio.sleep(0.01)


@contextmanager
def running(service):
    """A caller of this service, which is closed at the end."""
    with listen("127.0.0.1", 0) as taken:
        settings = uvicorn.Config(create_app(service), log_level="error", lifespan="on", timeout_graceful_shutdown=5)
        server = Attentive(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [taken]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield Caller(taken.getsockname()[:2], service.settings.api_key)
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()
