"""Who may call the HTTP service, with how much, and what it says of itself."""

import http.client
import json
import re

import pytest

from http_service import running
from lorary.adapters import Backbone
from lorary.adapters.server import Service, ServiceSettings, listen
from lorary.adapters.server.running import address_of, is_local
from lorary.hub import Registry
from lorary.hub.errors import UsageError

pytestmark = pytest.mark.usefixtures("frozen_imports")
ENGINE = {"cache_tokens": 256, "page_tokens": 4}
BODY = {"model": "llama", "prompt": "story", "max_tokens": 2}


@pytest.fixture(scope="module")
def backbone(bases, tmp_path_factory):
    registry = Registry(tmp_path_factory.mktemp("served") / "registry.db")
    return Backbone.from_pretrained(str(bases("llama")), registry=registry)


@pytest.fixture
def serve(backbone):
    return lambda **settings: running(Service(backbone, settings=ServiceSettings(engine=ENGINE, **settings)))


def test_the_key(serve):
    with serve(api_key="sésame") as caller:
        wrong = ({}, {"Authorization": "Bearer sesame"}, {"Authorization": "sésame"}, {"Authorization": "Basic x"})
        caller.headers = {name: value.encode() for name, value in caller.headers.items()}
        assert caller.call("/v1/completions", BODY)["usage"]["completion_tokens"] == 2
        caller.headers.pop("Authorization")
        for headers in wrong:
            headers = {name: value.encode() for name, value in headers.items()}
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
                assert "Authorization: Bearer KEY" in caller.problem(path, code=401, headers=headers)
            assert "Authorization" in caller.problem("/v1/completions", BODY, code=401, headers=headers)
        assert caller.call("/health") == {"status": "ok"}
        assert "<title>lorary</title>" in caller.call("/")


def test_a_key_with_the_line_end_of_its_file(serve):
    """No header could hold it."""
    with serve(api_key="secret\n") as caller:
        assert caller.call("/v1/models", headers={"Authorization": "Bearer secret"})["object"] == "list"


@pytest.mark.parametrize(
    "settings", [{"api_key": " "}, {"batch_rows": 0}, {"max_waiting": 0}, {"max_bytes": -1}], ids=str
)
def test_settings_that_cant_be(settings):
    with pytest.raises(UsageError, match=next(iter(settings))):
        ServiceSettings(**settings)


def test_a_request_that_is_too_large(serve):
    with serve(max_bytes=1000) as caller:
        body = json.dumps(BODY | {"prompt": "story " * 200})
        assert "larger than 1000 bytes" in caller.problem("/v1/completions", body, code=413)
        connection = http.client.HTTPConnection(*caller.address, timeout=10)
        pieces = (body[start : start + 100].encode() for start in range(0, len(body), 100))
        connection.request("POST", "/v1/completions", pieces, caller.headers, encode_chunked=True)
        assert connection.getresponse().status == 413
        connection.close()
        assert caller.call("/v1/completions", BODY)


def test_names_that_it_may_be_called_by(serve):
    """A page from elsewhere can give itself a name that means this machine."""
    with serve(hosts=("localhost", "127.0.0.1", "[::1]")) as caller:
        port = caller.address[1]
        for host in (f"127.0.0.1:{port}", "localhost", f"localhost:{port}", f"[::1]:{port}"):
            assert caller.call("/health", headers={"Host": host}) == {"status": "ok"}
        for host in (f"evil.example:{port}", "", "localhost:x"):
            assert "localhost, 127.0.0.1, [::1]" in caller.problem("/health", headers={"Host": host})


def test_a_form_of_another_page_is_no_request(serve):
    """Browsers send these from any page without asking."""
    with serve() as caller:
        for kind in ("text/plain", "application/x-www-form-urlencoded"):
            told = caller.problem("/v1/completions", json.dumps(BODY), headers={"Content-Type": kind})
            assert told == f"expected a body of 'Content-Type: application/json', found {kind!r}"
        assert "found none" in caller.problem("/v1/completions", json.dumps(BODY), headers={"Content-Type": ""})


def test_figures(serve):
    with serve() as caller:
        caller.call("/v1/completions", BODY)
        caller.call("/v1/completions", BODY | {"model": "made up"}, code=404)
        told = caller.call("/metrics")
        figures = dict(re.findall(r"^(lorary_\S+) (\S+)$", told, re.MULTILINE))
        assert figures['lorary_generated_tokens_total{model="llama"}'] == "2.0"
        assert figures['lorary_generated_texts_total{finish_reason="length",model="llama"}'] == "1.0"
        assert figures["lorary_first_token_seconds_count"] == "1.0"
        assert float(figures["lorary_steps_total"]) >= 2
        assert figures["lorary_requests_running"] == "0.0"
        assert "made up" not in told


def test_an_unexpected_error_tells_callers_nothing(serve, backbone, monkeypatch):
    with serve() as caller:
        monkeypatch.setattr("lorary.adapters.server.completions._submit", lambda *given: {}["/secret/place"])
        told = caller.problem("/v1/completions", BODY, code=500)
        assert "KeyError" in told
        assert "secret" not in told


def test_where_it_listens():
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert address_of(taken) == f"http://127.0.0.1:{port}"
        assert is_local(taken)
        taken.listen()
        with pytest.raises(UsageError, match=rf"can't listen at 127.0.0.1:{port} \(Address already in use\)"):
            listen("127.0.0.1", port)
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match="already in use"):  # nobody is let in yet, and it is taken all the same
            listen("127.0.0.1", port)
    with listen("0.0.0.0", 0) as taken:
        assert not is_local(taken)
        assert address_of(taken).startswith("http://127.0.0.1:")
    for host in ("no.such.host.invalid", "192.0.2.1", "a" * 300):
        with pytest.raises(UsageError, match="choose another --host or --port"):
            listen(host, 0)
    with pytest.raises(UsageError, match="port=70000"):
        listen("127.0.0.1", 70000)
