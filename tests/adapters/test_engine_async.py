"""Requests of an engine in an event loop: awaited, read as they come, and given up."""

import asyncio
import gc
import threading

import pytest

from lorary.adapters import Backbone
from lorary.hub.errors import EngineStoppedError, RequestCancelledError

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}


@pytest.fixture(scope="module")
def backbone(bases, kinds):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(kinds("small"), "small")
    return backbone


@pytest.fixture(scope="module")
def engine(backbone):
    with backbone.engine(**SMALL) as engine:
        yield engine


def test_many_are_awaited_by_one_thread(backbone, engine):
    names = ["small", None] * 8
    before = threading.active_count()

    async def all_of_them():
        requests = [engine.submit("profit rose", name, max_new_tokens=6) for name in names]
        return await asyncio.gather(*(request.completed() for request in requests))

    completions = asyncio.run(all_of_them())
    assert threading.active_count() == before
    alone = {name: backbone.generate("profit rose", name, max_new_tokens=6) for name in ("small", None)}
    assert [completion.text for completion in completions] == [alone[name] for name in names]


def test_pieces_come_one_after_the_other(engine):
    async def read():
        request = engine.submit("story", "small", max_new_tokens=40, eos_token_id=None)  # as many come late together
        pieces = [piece async for piece in request]
        again = [piece async for piece in request]
        return pieces, again, request.result(5).text

    pieces, again, text = asyncio.run(read())
    assert len(pieces) > 2
    assert "".join(pieces) == text == "".join(again)


def test_the_event_loop_goes_on_meanwhile(engine):
    async def both():
        request = engine.submit("story", None, max_new_tokens=40, eos_token_id=None)
        turns = 0
        waiting = asyncio.ensure_future(request.completed())
        while not waiting.done():
            turns += 1
            await asyncio.sleep(0)
        return turns, await waiting

    turns, completion = asyncio.run(both())
    assert turns > 2
    assert len(completion.tokens) == 40


def test_a_cancelled_request_ends_for_who_awaits_it(engine):
    async def give_up():
        request = engine.submit("story", None, max_new_tokens=60, eos_token_id=None)
        waiting = asyncio.ensure_future(request.completed())
        await asyncio.sleep(0)
        request.cancel()
        with pytest.raises(RequestCancelledError):
            await waiting
        with pytest.raises(RequestCancelledError):
            [piece async for piece in request]

    asyncio.run(give_up())


def test_a_task_that_is_cancelled_leaves_the_request_to_others(engine):
    async def abandon():
        request = engine.submit("story", None, max_new_tokens=30, eos_token_id=None)
        waiting = asyncio.ensure_future(request.completed())
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return request

    request = asyncio.run(abandon())  # its event loop is closed while tokens still come
    assert len(request.result(10).tokens) == 30


def test_who_awaits_hears_of_an_engine_that_is_closed(backbone):
    async def close():
        engine = backbone.engine(**SMALL)
        request = engine.submit("story", None, max_new_tokens=60, eos_token_id=None)
        waiting = asyncio.ensure_future(request.completed())
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineStoppedError, match="closed"):
            await waiting

    asyncio.run(close())


def test_who_awaits_hears_of_a_loop_that_is_gone_without_a_word(backbone, monkeypatch):
    engine = backbone.engine(**SMALL)
    monkeypatch.setattr("lorary.adapters.engine.request.WATCH_SECONDS", 0.05)
    monkeypatch.setattr(engine._loop, "begin", lambda request: True)  # taken on, and never heard of again

    async def wait():
        request = engine.submit("story", None, max_new_tokens=5)
        waiting = asyncio.ensure_future(request.completed())
        await asyncio.sleep(0)
        monkeypatch.setattr(engine._loop, "is_running", lambda: False)
        with pytest.raises(EngineStoppedError, match="thread has ended"):
            await asyncio.wait_for(waiting, 5)

    asyncio.run(wait())
    monkeypatch.undo()
    engine.close()
    gc.collect()
