"""A Hub that isn't there, or stops in the middle: one error, soon; and a token that goes to the Hub alone."""

import socket
import time

import pytest

from checkpoints import make_checkpoint
from lorary.hub.cli.main import main
from lorary.hub.errors import RemoteError, UsageError
from lorary.hub.remote import list_remote, pull, push
from lorary.hub.remote.session import _on_the_hub

REPO = "ann/finance-tone"


@pytest.fixture
def short(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setenv("LORARY_HUB_TIMEOUT", "0.3")
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)  # read from its variable at import


def fails(call, *words, within=3.0):
    started = time.monotonic()
    with pytest.raises(RemoteError) as caught:
        call()
    assert time.monotonic() - started < within
    for word in words:
        assert word in str(caught.value)


@pytest.fixture
def nowhere(hub, monkeypatch):
    """Point the client elsewhere: at a port where nobody listens, a name that nobody has, a host that is silent."""
    from huggingface_hub import constants

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()

        def point(kind):
            hub.stop()
            address = {
                "refused": hub.url,
                "no such host": "http://hub.invalid",
                "silent": f"http://127.0.0.1:{silent.getsockname()[1]}",
            }[kind]
            monkeypatch.setattr(constants, "ENDPOINT", address)
            return address

        yield point


@pytest.mark.parametrize("kind", ["refused", "no such host", "silent"])
def test_every_command_says_it_once_and_soon(nowhere, short, registry, add, kind, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_ann")
    add()
    address = nowhere(kind)
    for words in (
        ["pull", REPO],
        ["push", "finance-tone"],
        ["push", "finance-tone", REPO],
        ["list", "--remote", "ann"],
        ["list", "--all"],
    ):
        started = time.monotonic()
        command = words if words[0] == "list" else [*words, "--registry", str(registry.path)]
        assert main(command) == 1
        assert time.monotonic() - started < 3
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("lorary: error: ")
        assert f"{address} {'doesn' if kind == 'silent' else 'can'}" in line


@pytest.mark.parametrize("path", [r"^/lfs/", "/adapter_config.json", "/api/models/ann/finance-tone"])
def test_a_download_that_stands_still(ann, short, registry, add, elsewhere, no_wait, path):
    add()
    push(registry, "finance-tone")
    ann.fail("GET", path, keep=0, stall=True)
    fails(lambda: pull(elsewhere, REPO), "doesn't answer, or has stopped to; try again")
    ann.faults.clear()
    assert pull(elsewhere, REPO).new


@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_an_upload_that_stands_still(ann, short, registry, add, method):
    add()
    path = r"^/upload/" if method == "PUT" else "/commit/main"
    ann.fail(method, path, stall=True)
    fails(lambda: push(registry, "finance-tone"), "doesn't answer, or has stopped to; try again")
    assert set(ann.files(REPO)) == {".gitattributes"}
    ann.faults.clear()
    pushed = push(registry, "finance-tone")
    assert (pushed.number, pushed.commit) == (1, ann.repos[REPO].refs["main"])


def test_a_connection_that_is_cut_is_tried_again(ann, registry, add, elsewhere, no_wait):
    add()
    push(registry, "finance-tone")
    ann.fail("GET", r"^/api/models/ann/finance-tone", cut="before", times=2)
    assert pull(elsewhere, REPO).new


def test_attempts_are_one_line(ann, registry, add, no_wait, capsys):
    add()
    push(registry, "finance-tone")
    for _ in range(2):  # whatever the process did before
        ann.fail("GET", r"^/api/models\?", status=503, times=3)
        ann.fail("GET", r"^/api/models\?", cut="before", times=1)
        assert main(["list", "--remote", "ann"]) == 0
        assert capsys.readouterr().err.splitlines() == [
            "the Hub answers with an error (503); trying again for up to a minute",
            "the connection to the Hub broke off or stands still; trying again for up to a minute",
        ]


def test_the_hub_s_address_in_other_letters_is_the_hub(ann, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", ann.url.replace("127.0.0.1", "LOCALHOST"))
    assert list_remote("ann") == ([], False)
    assert {request.token for request in ann.requests} == {"hf_ann"}


@pytest.mark.parametrize(
    ("endpoint", "home"),
    [
        ("https://mirror.example", True),
        ("https://Mirror.Example:443", True),
        ("https://mirror.example:443/hf", True),
        ("HTTPS://mirror.example", True),
        ("https://mirror.example:8443", False),
        ("http://mirror.example", False),
        ("http://mirror.example:443", False),
        ("https://mirror.example.org", False),
        ("https://b\u00fccher.example", False),
    ],
)
def test_an_origin_is_compared_as_a_whole(monkeypatch, endpoint, home):
    from huggingface_hub import constants, get_session

    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    request = get_session().build_request("GET", "https://mirror.example/api/models")
    assert _on_the_hub(request.url) is home
    assert _on_the_hub(get_session().build_request("GET", f"{endpoint}/api").url)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_none(ann, monkeypatch, text):
    monkeypatch.setenv("LORARY_HUB_TIMEOUT", text)
    with pytest.raises(UsageError, match=f"LORARY_HUB_TIMEOUT is '{text}'; expected a number of seconds"):
        list_remote("ann")


def test_a_session_that_the_user_chose_stays(ann):
    import huggingface_hub
    from huggingface_hub.utils import _http

    asked = []

    def own():
        client = _http.default_client_factory()
        client.event_hooks["request"].append(lambda request: asked.append(str(request.url)))
        return client

    before = _http._GLOBAL_CLIENT_FACTORY
    huggingface_hub.set_client_factory(own)
    try:
        assert list_remote("ann") == ([], False)
    finally:
        huggingface_hub.set_client_factory(before)
    assert len(asked) == 1


def test_other_libraries_still_find_what_is_in_the_cache(ann, tmp_path):
    """The client falls back to its cache where the Hub is out of reach; lorary's own calls don't change that."""
    from huggingface_hub import hf_hub_download

    ann.commit_folder("bob/tone", make_checkpoint(tmp_path / "tone", manifest=False))
    assert list_remote("bob") == ([], False)
    path = hf_hub_download("bob/tone", "adapter_config.json")
    ann.stop()
    assert hf_hub_download("bob/tone", "adapter_config.json") == path
