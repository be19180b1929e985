"""Where memory runs out, or the engine fails: one clear error for who asked, and an answer for who asks next."""

import gc
import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from transformers.generation.continuous_batching.cache import PagedAttentionCache

from http_service import running
from lorary.adapters import Backbone
from lorary.adapters.server import Service, ServiceSettings
from lorary.hub import Registry

pytestmark = pytest.mark.usefixtures("frozen_imports")
ENGINE = {"cache_tokens": 256, "page_tokens": 4}
BODY = {"model": "llama", "prompt": "story", "max_tokens": 6}
TEXTS, PREDICT = "/v1/completions", "/v1/predict"
MEMORY = "out of memory; send fewer or shorter texts"


def much(*_, **__):
    """More memory than there is."""
    return torch.empty(2**55, dtype=torch.uint8)


def wrong(*_, **__):
    raise RuntimeError("/secret/place")


@pytest.fixture
def backbone(bases, tmp_path):
    return Backbone.from_pretrained(str(bases("llama")), registry=Registry(tmp_path / "registry.db"))


@pytest.fixture
def service(backbone):
    return Service(backbone, settings=ServiceSettings(engine=ENGINE))


@pytest.fixture
def caller(service):
    with running(service) as caller:
        yield caller


@pytest.fixture
def fails(backbone, monkeypatch):
    """Let the next passes of the model, or all of them, fail."""

    def fails(how, times=None):
        left = iter(range(times)) if times is not None else iter(int, 1)
        forward = backbone.model.forward
        monkeypatch.setattr(
            backbone.model, "forward", lambda *a, **k: forward(*a, **k) if next(left, None) is None else how()
        )

    return fails


def caches():
    gc.collect()
    return sum(isinstance(one, PagedAttentionCache) for one in gc.get_objects())


def test_rows_that_memory_has_no_room_for(caller, backbone, monkeypatch, caplog):
    body = {"model": "llama", "inputs": "story"}
    expected = caller.call(PREDICT, body)
    monkeypatch.setattr(backbone.body, "forward", much)
    response, connection = caller.send("POST", PREDICT, body)
    assert (response.status, response.headers["Retry-After"]) == (503, "1")
    error = json.loads(response.read())["error"]
    assert (error["message"], error["code"]) == (MEMORY, "out_of_memory")
    connection.close()
    monkeypatch.undo()
    assert caller.call(PREDICT, body) == expected
    assert "Traceback" not in caplog.text


@pytest.mark.parametrize("streamed", [False, True])
def test_texts_that_memory_has_no_room_for(caller, service, fails, streamed):
    expected, engine = caller.call(TEXTS, BODY)["choices"], service.engine
    fails(much, times=1)
    if streamed:
        told = json.loads(list(caller.events(TEXTS, BODY))[-1])["error"]["message"]
    else:
        told = caller.problem(TEXTS, BODY, code=503)
    assert told == MEMORY
    assert caller.call(TEXTS, BODY)["choices"] == expected
    assert service.engine is engine
    assert "lorary_requests_failed_total 1.0" in caller.call("/metrics")


def test_an_engine_that_fails_is_opened_anew(caller, service, fails, monkeypatch, caplog):
    # pytest keeps what is logged, and with an error all that was in its frames.
    monkeypatch.setattr(logging.getLogger("ContinuousBatchingLogger"), "disabled", True)
    expected = caller.call(TEXTS, BODY)["choices"]
    first, before = service.engine, caches()
    fails(wrong, times=1)
    told = caller.problem(TEXTS, BODY, code=503)
    assert told == "the engine has failed, and is opened anew: ask again"
    with ThreadPoolExecutor(4) as threads:
        answers = list(threads.map(lambda _: caller.call(TEXTS, BODY)["choices"], range(4)))
    assert answers == [expected] * 4
    assert caplog.text.count("opened anew") == 1
    assert service.engine is not first
    assert caller.call("/health") == {"status": "ok"}
    assert "lorary_requests_running 0.0" in caller.call("/metrics")
    del first
    assert caches() == before  # that of the engine that failed is gone


def test_an_engine_that_cant_be_opened_anew(caller, service, fails, monkeypatch):
    """Health tells of it, and looks whether it can by now."""
    expected = caller.call(TEXTS, BODY)["choices"]
    fails(wrong)
    caller.problem(TEXTS, BODY, code=503)
    told = caller.problem(TEXTS, BODY, code=503)
    assert told == "the engine has failed, and can't be opened anew; the service's log says more"
    assert caller.call("/health", code=503)["status"] == told
    monkeypatch.undo()
    assert caller.call("/health") == {"status": "ok"}
    assert caller.call(TEXTS, BODY)["choices"] == expected
    service.close()
    assert "was stopped" in caller.call("/health", code=503)["status"]
    assert "was stopped" in caller.problem(TEXTS, BODY, code=503)
