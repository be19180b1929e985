"""What happens to one request of an engine stays with it: caches, versions, cancellations, errors, the end."""

import gc
import sys
import threading
import time
import weakref
from contextlib import contextmanager

import pytest
import torch
from transformers.generation.configuration_utils import ContinuousBatchingConfig

from lorary.adapters.base.memory import out_of_memory
from lorary.adapters.engine.compatibility import Comparison
from lorary.adapters.engine.loop import Router
from lorary.adapters.engine.request import WATCH_SECONDS
from lorary.hub.errors import (
    EngineStoppedError,
    EngineUnsupportedError,
    RequestCancelledError,
    RequestFailedError,
    RequestTooLongError,
    UnknownReferenceError,
    UsageError,
)
from tiny import VOCABULARY

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
LONG = "profit sales rose fell bank the a report shares loss gain growth market price offer cash win free click patient"


def answers_to_a_long_prompt(backbone):
    """By adapter: generated alone, in an engine one after the other, and in an engine at once."""
    names = ["one", "two", None]
    alone = {name: backbone.generate(LONG, name, max_new_tokens=6) for name in names}
    with backbone.engine(**SMALL) as engine:
        in_turn = {name: engine.submit(LONG, name, max_new_tokens=6).result(20).text for name in names}
        requests = {name: engine.submit(LONG, name, max_new_tokens=6) for name in names * 2}
        at_once = {name: request.result(20).text for name, request in requests.items()}
    return alone, in_turn, at_once


def test_a_cached_prefix_is_never_shared_across_adapters(backbone):
    alone, in_turn, at_once = answers_to_a_long_prompt(backbone)
    assert len(set(alone.values())) == 3
    assert in_turn == alone
    assert at_once == alone


def test_the_test_above_sees_a_shared_prefix(backbone, monkeypatch):
    """With transformers' own sharing, one adapter's keys and values answer for another's."""

    def sharing(**settings):
        return ContinuousBatchingConfig(**settings | {"allow_block_sharing": True})

    monkeypatch.setattr("lorary.adapters.engine.loop.ContinuousBatchingConfig", sharing)
    alone, in_turn, at_once = answers_to_a_long_prompt(backbone)
    assert in_turn != alone
    assert at_once != alone


def test_requests_finish_on_the_version_they_began_with(backbone, kinds):
    """Swapped for a version of larger rank, which moves all slots to a larger arena, and then unloaded."""
    old = backbone.generate("story", "one", max_new_tokens=40, eos_token_id=None)
    with backbone.engine(**SMALL) as engine:
        before = engine.submit("story", "one", max_new_tokens=40, eos_token_id=None)
        next(iter(before))
        backbone.swap("one", kinds("larger"))
        after = engine.submit("story", "one", max_new_tokens=40, eos_token_id=None)
        next(iter(after))
        backbone.unload("one")
        with pytest.raises(UnknownReferenceError, match="no adapter 'one'"):
            engine.submit("story", "one")
        old_version, new_version = before.result(20), after.result(20)
    backbone.load(kinds("larger"), "one")
    assert old_version.text == old
    assert new_version.text == backbone.generate("story", "one", max_new_tokens=40, eos_token_id=None) != old
    assert old_version.digest != new_version.digest
    assert backbone.stats().slots_used == 2  # the versions that were let go have left theirs


def test_a_waiting_request_keeps_its_version_too(backbone, kinds):
    old = backbone.generate("story", "one", max_new_tokens=5)
    with backbone.engine(**SMALL | {"max_running": 1}) as engine:
        first = engine.submit(LONG, "two", max_new_tokens=40, eos_token_id=None)
        waiting = engine.submit("story", "one", max_new_tokens=5)
        assert engine.stats().waiting == 1
        backbone.swap("one", kinds("larger"))
        assert waiting.result(20).text == old
        assert first.done


@contextmanager
def gated(backbone):
    """The loop goes on by as many steps as are released."""
    gate = threading.Semaphore(0)

    def wait(module, args, output):
        assert gate.acquire(timeout=20)

    handle = backbone.model.lm_head.register_forward_hook(wait)
    try:
        yield gate
    finally:
        handle.remove()
        gate.release(1000)


def test_a_cancelled_request_gives_its_memory_back(backbone):
    """Before the next step, not when it would have ended."""
    with backbone.engine(**SMALL) as engine:
        with gated(backbone) as gate:
            kept = engine.submit(LONG, "one", max_new_tokens=40, eos_token_id=None)
            dropped = [engine.submit(LONG, name, max_new_tokens=44, eos_token_id=None) for name in ("two", None, "two")]
            gate.release(12)
            next(iter(dropped[0]))
            held = engine.stats()
            for request in dropped:
                request.cancel()
            with pytest.raises(RequestCancelledError, match="was cancelled after"):
                dropped[0].result(5)
            with pytest.raises(RequestCancelledError):
                list(dropped[1])
            gate.release(2)
            settled(engine, running=1)
            freed = engine.stats()
            assert not kept.done
        assert kept.result(20).text == backbone.generate(LONG, "one", max_new_tokens=40, eos_token_id=None)
        settled(engine, running=0)
        stats = engine.stats()
    assert held.cache_free < freed.cache_free < stats.cache_free == 1.0
    assert freed.running_adapters == ("one",)
    assert (stats.finished, stats.cancelled, stats.failed) == (1, 3, 0)
    backbone.unload("two")
    assert backbone.stats().slots_used == 1


def test_a_request_that_waits_for_cache_can_be_cancelled(backbone):
    """It has its slot by then, and gives it back while what has the cache goes on."""
    with backbone.engine(**SMALL | {"cache_tokens": 32}) as engine:
        with gated(backbone) as gate:
            first = engine.submit(LONG, "one", max_new_tokens=13, eos_token_id=None)
            second = engine.submit(LONG, "two", max_new_tokens=13, eos_token_id=None)
            gate.release(4)
            next(iter(first))
            assert engine.stats().running_adapters == ("one", "two")
            second.cancel()
            gate.release(2)
            settled(engine, running=1)
            assert engine.stats().running_adapters == ("one",)
            assert not first.done
            assert not second.tokens
        assert first.result(20).text == backbone.generate(LONG, "one", max_new_tokens=13, eos_token_id=None)


def settled(engine, running):
    """Wait until so many requests run: the loop lets go of the others before its next step."""
    deadline = time.monotonic() + 10
    while engine.stats().running != running and time.monotonic() < deadline:
        time.sleep(0.005)
    assert engine.stats().running == running


def test_cancelling_twice_or_too_late_changes_nothing(backbone):
    with backbone.engine(**SMALL) as engine:
        request = engine.submit("story", "one", max_new_tokens=3)
        text = request.result(10).text
        request.cancel()
        request.cancel()
        assert request.result().text == text
        assert engine.stats().cancelled == 0


@contextmanager
def at_collections(call):
    """Garbage is collected all the time, and each time this is called, in the midst of what a thread is doing."""

    def collected(phase, info):
        if phase == "start":
            call()

    thresholds = gc.get_threshold()
    gc.callbacks.append(collected)
    gc.set_threshold(1)
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        gc.callbacks.remove(collected)


def test_a_request_can_be_cancelled_while_the_loop_looks(backbone):
    """By what collecting garbage calls, or by a thread that it lets run."""
    with backbone.engine(**SMALL | {"max_running": 64}) as engine, gated(backbone):
        requests = [engine.submit("story", None, max_new_tokens=5) for _ in range(64)]
        later = iter(requests[32:])
        for request in requests[:32]:
            request.cancel()

        def cancel():
            if (request := next(later, None)) is not None:
                request.cancel()

        with at_collections(cancel):
            looks = [engine._admission.given_up() for _ in range(64)]
        assert len(looks[-1]) == 64


@pytest.mark.parametrize("name", ["one", None])
def test_a_request_can_be_cancelled_while_it_is_admitted(backbone, name):
    """By what collecting garbage calls, such as the end of a generator that cancels what it reads."""
    with backbone.engine(**SMALL) as engine:
        for moment in range(40):
            seen = []

            def cancel(moment=moment, seen=seen):
                seen.extend(engine._admission._waiting)
                if len(seen) > moment:
                    seen[0].cancel()

            with at_collections(cancel):
                request = engine.submit("story", name, max_new_tokens=2)
            try:
                assert request.result(10).text == backbone.generate("story", name, max_new_tokens=2)
            except RequestCancelledError:
                settled(engine, running=0)
        stats = engine.stats()
        assert stats.cancelled > 0
        assert (stats.finished + stats.cancelled, stats.failed) == (40, 0)
        backbone.unload("one")


def test_a_request_in_the_queue_can_be_cancelled(backbone):
    with backbone.engine(**SMALL | {"max_running": 1}) as engine:
        first = engine.submit("story", "one", max_new_tokens=30, eos_token_id=None)
        queued = engine.submit("story", "two", max_new_tokens=3)
        queued.cancel()
        assert engine.stats().waiting == 0
        with pytest.raises(RequestCancelledError, match="after 0 tokens"):
            queued.result(5)
        assert first.result(20).finish_reason == "length"


def test_more_requests_than_the_cache_holds(backbone):
    """transformers then takes requests out of the cache and begins them anew; nobody is to notice."""
    names = ["one", "two", None, "one", "two", None]
    sampled = {"do_sample": True, "temperature": 2.0, "max_new_tokens": 30, "eos_token_id": None}
    expected = []
    for seed, name in enumerate(names):
        torch.manual_seed(seed)
        expected.append(backbone.generate(LONG, name, **sampled))
    with backbone.engine(**SMALL | {"cache_tokens": 100}) as engine:
        requests = [engine.submit(LONG, name, seed=seed, **sampled) for seed, name in enumerate(names)]
        assert [request.result(30).text for request in requests] == expected
        settled(engine, running=0)
        assert engine.stats().cache_free == 1.0


def test_what_never_fits_is_refused_at_once(backbone):
    with backbone.engine(**SMALL | {"cache_tokens": 32}) as engine:
        with pytest.raises(
            RequestTooLongError, match=r"20 prompt tokens and 14 new ones need 33 places.*cache.* has 32"
        ):
            engine.submit(LONG, "one", max_new_tokens=14)
        # One token less has just room enough.
        assert len(engine.submit(LONG, "one", max_new_tokens=13, eos_token_id=None).result(10).tokens) == 13
    with backbone.engine(**SMALL) as engine:
        with pytest.raises(RequestTooLongError, match="the model has 64"):
            engine.submit(LONG, max_new_tokens=46)
        done = engine.submit(LONG, max_new_tokens=45, eos_token_id=None).result(10)
        assert done.text == backbone.generate(LONG, max_new_tokens=45, eos_token_id=None)


def test_a_bad_submission_disturbs_nobody(backbone):
    with backbone.engine(**SMALL) as engine:
        running = engine.submit("story", "one", max_new_tokens=30, eos_token_id=None)
        for prompt, name, error in (("story", "three", UnknownReferenceError), ("", "one", UsageError)):
            with pytest.raises(error):
                engine.submit(prompt, name)
        assert running.result(20).text == backbone.generate("story", "one", max_new_tokens=30, eos_token_id=None)


def test_a_token_beyond_the_vocabulary_is_refused(backbone):
    backbone.tokenizer.add_tokens(["beyond"])
    with backbone.engine(**SMALL) as engine, pytest.raises(UsageError, match=f"the model has {VOCABULARY}"):
        engine.submit("beyond")


def test_a_failing_choice_of_a_token_ends_its_request_alone(backbone):
    """All tokens but one suppressed, and that one too: there is nothing left to draw."""
    everything = list(range(VOCABULARY))
    with backbone.engine(**SMALL) as engine:
        others = [engine.submit("story", name, max_new_tokens=20, eos_token_id=None) for name in ("one", "two")]
        broken = engine.submit("story", "one", do_sample=True, suppress_tokens=everything, max_new_tokens=5)
        with pytest.raises(RequestFailedError, match="choosing a token failed"):
            broken.result(10)
        for name, request in zip(("one", "two"), others, strict=True):
            assert request.result(20).text == backbone.generate("story", name, max_new_tokens=20, eos_token_id=None)
        settled(engine, running=0)
        assert engine.stats().failed == 1


def test_logits_that_are_no_numbers_are_an_error(backbone):
    with backbone.engine(**SMALL) as engine:
        handle = backbone.model.lm_head.register_forward_hook(lambda module, args, output: output * torch.nan)
        request = engine.submit("story", "one", max_new_tokens=5)
        with pytest.raises(RequestFailedError, match="answered NaN"):
            request.result(10)
        handle.remove()
        assert engine.submit("story", "one", max_new_tokens=5).result(10).text == backbone.generate(
            "story", "one", max_new_tokens=5
        )


def run_out(backbone, monkeypatch, passes):
    """Let so many passes of the model, in their last layer, ask for more memory than any machine has."""
    last, left = backbone.model.model.layers[-1].mlp, iter(range(passes))
    forward = last.forward

    def much(*inputs):
        return torch.empty(1 << 60, dtype=torch.uint8) if next(left, None) is not None else forward(*inputs)

    monkeypatch.setattr(last, "forward", much)


def test_a_proof_that_memory_has_no_room_for_ends_its_request(backbone, kinds, monkeypatch):
    """An adapter that is loaded lazily is shown to take effect when a request first brings it into a slot."""
    backbone.load(kinds("large"), "late", lazy=True)
    with backbone.engine(**SMALL) as engine:
        run_out(backbone, monkeypatch, 1)
        with pytest.raises(RequestFailedError, match="memory ran out as its adapter late") as told:
            engine.submit("story", "late", max_new_tokens=5).result(10)
        assert out_of_memory(told.value.__cause__)
        text = engine.submit("story", "late", max_new_tokens=5).result(10).text
        assert text == backbone.generate("story", "late", max_new_tokens=5)


def test_a_step_that_memory_has_no_room_for_ends_the_requests_in_it(backbone, monkeypatch):
    """Those that wait have their turn, and the cache is free."""
    with backbone.engine(**SMALL | {"max_running": 2}) as engine:
        with gated(backbone) as gate:
            wanted = {"max_new_tokens": 9, "eos_token_id": None}
            first = [engine.submit(prompt, "one", **wanted) for prompt in (LONG, "story")]
            waiting = [engine.submit("profit", name, **wanted) for name in ("two", None)]
            gate.release(3)
            for request in first:
                next(iter(request))
            run_out(backbone, monkeypatch, 1)
        for request in first:
            with pytest.raises(RequestFailedError, match=f"{request.id}: memory ran out in a step of 2") as told:
                request.result(10)
            assert out_of_memory(told.value.__cause__)
        for name, request in zip(("two", None), waiting, strict=True):
            assert request.result(10).text == backbone.generate("profit", name, **wanted)
        settled(engine, running=0)
        assert (engine.stats().failed, engine.stats().finished, engine.stats().cache_free) == (2, 2, 1.0)
        assert engine.submit(LONG, "one", **wanted).result(10).text == backbone.generate(LONG, "one", **wanted)


def test_an_engine_that_memory_has_no_room_for_isnt_opened(backbone, monkeypatch):
    run_out(backbone, monkeypatch, 1)
    with pytest.raises(EngineUnsupportedError, match=r"fails in continuous batching: .*can't allocate memory"):
        backbone.engine(**SMALL)
    with backbone.engine(**SMALL) as engine:
        assert engine.submit("story", max_new_tokens=6).result(10).text == backbone.generate("story", max_new_tokens=6)


def test_what_a_step_without_memory_left_in_the_cache_is_nobodys_prefix(backbone, monkeypatch):
    with backbone.engine(**SMALL | {"prefix_cache": True, "batch_tokens": 64}) as engine:
        expected = backbone.generate(LONG, "one", max_new_tokens=6)
        run_out(backbone, monkeypatch, 1)
        with pytest.raises(RequestFailedError, match="memory ran out"):
            engine.submit(LONG, "one", max_new_tokens=6).result(10)
        assert engine.submit(LONG, "one", max_new_tokens=6).result(10).text == expected
        assert engine.stats().reused_tokens == 0
        assert engine.submit(LONG, "one", max_new_tokens=6).result(10).text == expected
        assert engine.stats().reused_tokens > 0


def test_a_crash_reaches_everybody(backbone):
    with backbone.engine(**SMALL | {"max_running": 2}) as engine:
        requests = [engine.submit("story", name, max_new_tokens=50, eos_token_id=None) for name in ("one", "two", None)]
        next(iter(requests[0]))
        found = []

        def wait(request):
            try:
                list(request)
            except EngineStoppedError as error:
                found.append(str(error))

        waiting = [threading.Thread(target=wait, args=(request,)) for request in requests]
        for thread in waiting:
            thread.start()

        def fail(module, args, output):
            raise ArithmeticError("no more")

        handle = backbone.model.lm_head.register_forward_hook(fail)
        for thread in waiting:
            thread.join(10)
        handle.remove()
        assert found == ["the engine's thread has failed (ArithmeticError: no more); open another engine"] * 3
        with pytest.raises(EngineStoppedError, match="has failed"):
            engine.submit("story")
    with pytest.raises(EngineStoppedError, match="has failed"):  # closed since, but that isn't why
        engine.submit("story")
    backbone.unload("one")
    assert backbone.stats().slots_used == 1  # nothing is held any more
    with backbone.engine(**SMALL) as engine:
        assert engine.submit("story", "two", max_new_tokens=3).result(10).tokens


def test_a_loop_that_is_gone_without_a_word_keeps_nobody_waiting(backbone, monkeypatch):
    for waits in ("engine.admission", "engine.request"):
        monkeypatch.setattr(f"lorary.adapters.{waits}.WATCH_SECONDS", 0.02)
    monkeypatch.setattr(Router, "fail_and_deliver", lambda *failure: None)
    engine = backbone.engine(**SMALL | {"max_running": 1})
    with gated(backbone):
        requests = [engine.submit("story", name, max_new_tokens=20) for name in ("one", "two")]
        handle = backbone.model.lm_head.register_forward_hook(lambda *_: 1 / 0)
    for request in requests:
        with pytest.raises(EngineStoppedError, match="thread has ended"):
            request.result(20)
    handle.remove()
    engine.close(drain=True, timeout=20)
    for name in ("one", "two"):
        backbone.unload(name)
    assert backbone.stats().slots_used == 0


def test_closing_ends_what_runs_and_frees_the_cache(backbone):
    threads = set(threading.enumerate())
    engine = backbone.engine(**SMALL)
    (loop,) = set(threading.enumerate()) - threads
    cache = weakref.ref(engine._loop._manager.batch_processor.cache)
    request = engine.submit("story", "one", max_new_tokens=60, eos_token_id=None)
    next(iter(request))
    engine.close()
    engine.close()
    with pytest.raises(EngineStoppedError, match="was closed"):
        request.result(5)
    with pytest.raises(EngineStoppedError, match="was closed"):
        engine.submit("story")
    assert not loop.is_alive()
    gc.collect()
    assert cache() is None
    assert engine.stats().running == 0
    backbone.unload("one")
    assert backbone.stats().slots_used == 1


def test_closing_can_wait_for_what_is_there(backbone):
    engine = backbone.engine(**SMALL | {"max_running": 2})
    requests = [engine.submit("story", name, max_new_tokens=20, eos_token_id=None) for name in ("one", "two", None)]
    engine.close(drain=True, timeout=20)
    assert all(len(request.result(0).tokens) == 20 for request in requests)


def test_closing_waits_for_no_longer_than_it_is_told(backbone):
    with backbone.engine(**SMALL | {"max_running": 1}) as engine:
        with gated(backbone) as gate:
            requests = [engine.submit("story", "one", max_new_tokens=60, eos_token_id=None) for _ in range(2)]
            gate.release(2)
            next(iter(requests[0]))
            threading.Timer(0.1, gate.release, [8]).start()  # closing waits for the step that is running
            engine.close(drain=True, timeout=0.05)
        for request in requests:
            with pytest.raises(EngineStoppedError, match="was closed"):
                request.result(5)
        assert len(requests[0].tokens) < 20
        assert (engine.stats().waiting, engine.stats().running) == (0, 0)


def test_an_engine_that_is_dropped_ends_its_thread(backbone):
    threads = set(threading.enumerate())
    engine = backbone.engine(**SMALL)
    (loop,) = set(threading.enumerate()) - threads
    assert loop.daemon
    assert engine.submit("story", max_new_tokens=2).result(10).tokens
    del engine
    gc.collect()
    loop.join(5)
    assert not loop.is_alive()


def test_a_piece_comes_with_its_token(backbone):
    with backbone.engine(**SMALL) as engine:
        with gated(backbone) as gate:
            request = engine.submit("story", "one", max_new_tokens=3, eos_token_id=None)
            pieces, read = iter(request), []
            for place in range(1, 3):
                gate.release()
                read.append(next(pieces))
                assert len(request.tokens) == place
        assert "".join([*read, *pieces]) == request.result(10).text
    with pytest.raises(EngineStoppedError, match="was closed"):  # as the block has ended
        engine.submit("story")


def test_waiting_is_as_long_as_it_is_told(backbone, monkeypatch):
    with backbone.engine(**SMALL) as engine, gated(backbone) as gate:
        request = engine.submit("story", "one", max_new_tokens=3, eos_token_id=None)
        began = time.monotonic()
        with pytest.raises(TimeoutError, match="isn't done yet"):
            request.result(0.05)
        assert time.monotonic() - began < WATCH_SECONDS
        monkeypatch.setattr("lorary.adapters.engine.request.WATCH_SECONDS", 0.02)  # it looks around meanwhile
        found = []
        waiting = [threading.Thread(target=lambda most=most: found.append(request.result(most))) for most in (None, 20)]
        for thread in waiting:
            thread.start()
        time.sleep(0.1)
        assert not found
        gate.release(3)
        for thread in waiting:
            thread.join(20)
        assert [len(completion.tokens) for completion in found] == [3, 3]


def test_what_was_compared_as_it_opened_is_free(backbone, monkeypatch):
    """It kept each row of logits."""
    made = []

    def comparison(inference):
        made.append(weakref.ref(found := Comparison(inference)))
        return found

    monkeypatch.setattr("lorary.adapters.engine.engine.Comparison", comparison)
    with backbone.engine(**SMALL):
        gc.collect()
        (found,) = made
        assert found() is None


def test_waiting_has_an_end(backbone):
    with backbone.engine(**SMALL) as engine:
        request = engine.submit("story", "one", max_new_tokens=60, eos_token_id=None)
        with pytest.raises(TimeoutError, match="isn't done yet"):
            request.result(0.0)
        assert len(request.result(20).tokens) == 60


def test_an_engine_that_is_garbage_to_its_own_thread_ends_it(backbone, monkeypatch):
    """Garbage is collected in any thread; one can't wait for itself."""
    lost = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: lost.append(str(found.exc_value)))
    monkeypatch.setattr(sys, "excepthook", lambda *found: lost.append(str(found[1])))
    threads = set(threading.enumerate())
    engine = backbone.engine(**SMALL)
    (loop,) = set(threading.enumerate()) - threads

    def collect(module, args, output):
        gc.collect()

    backbone.model.lm_head.register_forward_hook(collect)
    with gated(backbone) as gate:
        request = engine.submit("story", max_new_tokens=40, eos_token_id=None)
        engine.itself = engine  # in a circle, so that it is left to the collector
        gc.disable()
        try:
            del engine
            gate.release(1000)
            loop.join(10)
        finally:
            gc.enable()
    assert not loop.is_alive()
    assert not lost
    with pytest.raises(EngineStoppedError):
        request.result(5)


@pytest.mark.parametrize("prompt", ["story " * 500_000, [{"role": "user", "content": "story " * 500_000}]])
def test_what_is_far_too_long_is_refused_before_it_is_read(backbone, prompt, monkeypatch):
    """Megabytes would take minutes, and gigabytes, in which nobody else's prompt is read."""
    with backbone.engine(**SMALL) as engine:
        monkeypatch.setattr(engine._inference, "prompt_ids", None)
        with pytest.raises(RequestTooLongError, match=r"a prompt of 3000000 signs.*shorten the prompt"):
            engine.submit(prompt)


def test_what_a_template_makes_far_too_long_is_refused_before_it_is_read(backbone, monkeypatch):
    """As one does of tools: their text would be cut into tokens while everybody waits."""
    monkeypatch.setattr(backbone.tokenizer, "chat_template", "{{ tools }}{{ messages[0].content }}")
    tool = {"type": "function", "function": {"name": "f", "description": "story " * 500_000}}
    with backbone.engine(**SMALL) as engine:
        with pytest.raises(RequestTooLongError, match=r"a prompt of 30000\d\d signs.*shorten the prompt"):
            engine.submit([{"role": "user", "content": "story"}], tools=[tool])
        with pytest.raises(RequestTooLongError) as refused:
            engine.submit("story", max_new_tokens=10**4000)
        assert len(str(refused.value)) < 500
