"""More adapters than slots: requests wait their turn, none for ever, and slots that others use stay theirs."""

import gc
import shutil
import threading
import time
import weakref
from contextlib import contextmanager

import pytest

from lorary.adapters import Backbone
from lorary.adapters.engine import Request, admission
from lorary.adapters.engine.decoding import Decoding
from lorary.adapters.engine.step import Step
from lorary.adapters.layer import step_cache
from lorary.hub.errors import CheckpointError, SlotsFullError

pytestmark = pytest.mark.usefixtures("frozen_imports")
SMALL = {"cache_tokens": 1024, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
NAMES = ["a0", "a1", "a2", "a3", "a4"]


@pytest.fixture
def open_backbone(bases, kinds):
    """A function: a tiny Llama with five adapters and so many slots."""

    def open_with(slots, **settings):
        backbone = Backbone.from_pretrained(str(bases("llama")), slots=slots, **settings)
        for name, kind in zip(NAMES, ("small", "other", "large", "dora", "output"), strict=True):
            backbone.load(kinds(kind), name)
        return backbone

    return open_with


@pytest.mark.parametrize(("slots", "spare"), [(1, 1), (2, 0), (3, 1)])
def test_five_adapters_take_turns(open_backbone, slots, spare):
    backbone = open_backbone(slots)
    names = [*NAMES, None]
    expected = {name: backbone.generate("story", name, max_new_tokens=6) for name in names}
    assert len(set(expected.values())) > 3
    with backbone.engine(**SMALL, spare_slots=spare) as engine:
        requests = [(name, engine.submit("story", name, max_new_tokens=6)) for name in names * 4]
        assert [request.result(30).text for _, request in requests] == [expected[name] for name, _ in requests]
        assert engine.stats().finished == 24
    assert backbone.stats().evictions >= 5 - slots


def test_a_request_that_waits_for_a_slot_is_not_overtaken_for_ever(open_backbone):
    """One slot, and always another request for the adapter that has it."""
    backbone = open_backbone(1)
    expected = backbone.generate("story", "a1", max_new_tokens=3)
    with backbone.engine(**SMALL) as engine:
        ahead = [engine.submit("story", "a0", max_new_tokens=20, eos_token_id=None) for _ in range(3)]
        patient = engine.submit("story", "a1", max_new_tokens=3)
        crowd = [engine.submit("story", "a0", max_new_tokens=20, eos_token_id=None) for _ in range(80)]
        assert patient.result(30).text == expected
        finished = sum(request.done for request in crowd)
        assert finished <= admission._OVERTAKERS
        assert all(request.done for request in ahead)
        assert {len(request.result(30).tokens) for request in crowd} == {20}


def test_bare_requests_pass_one_that_waits_for_a_slot(open_backbone):
    backbone = open_backbone(1)
    with backbone.engine(**SMALL) as engine, backbone.using("a0"):
        waiting = engine.submit("story", "a1", max_new_tokens=3)
        assert engine.submit("story", None, max_new_tokens=3).result(10).tokens
        assert not waiting.done
        waiting.cancel()


def test_a_slot_that_another_call_leaves_goes_to_who_waits(open_backbone):
    backbone = open_backbone(1)
    expected = backbone.generate("story", "a1", max_new_tokens=6)
    with backbone.engine(**SMALL) as engine:
        with backbone.using("a0"):
            waiting = engine.submit("story", "a1", max_new_tokens=6)
            with pytest.raises(TimeoutError):
                waiting.result(0.3)
            assert engine.stats().waiting == 1
        assert waiting.result(10).text == expected


def test_closing_waits_for_who_waits_for_a_slot(open_backbone):
    backbone = open_backbone(1)
    expected = backbone.generate("story", "a1", max_new_tokens=6)
    engine = backbone.engine(**SMALL)
    with backbone.using("a0"):
        waiting = engine.submit("story", "a1", max_new_tokens=6)
        closing = threading.Thread(target=engine.close, kwargs={"drain": True, "timeout": 20})
        closing.start()
        closing.join(0.1)
        assert closing.is_alive()
    closing.join(20)
    assert waiting.result(0).text == expected


def test_pinned_adapters_keep_their_slots(open_backbone):
    backbone = open_backbone(2)
    backbone.pin("a0")
    with backbone.engine(**SMALL) as engine:
        requests = [engine.submit("story", name, max_new_tokens=4) for name in NAMES * 2]
        assert all(request.result(20).tokens for request in requests)
        held = backbone.stats()
        assert held.slots_used == 2
        evictions = held.evictions
        assert engine.submit("story", "a0", max_new_tokens=4).result(10).tokens
        assert backbone.stats().evictions == evictions  # it was there all the time


def test_requests_of_adapters_that_have_slots_run_at_once(open_backbone):
    """Pinned, or running already; however few slots its requests may have."""
    backbone = open_backbone(2)
    backbone.pin("a0")
    with backbone.engine(**SMALL, spare_slots=1) as engine:
        requests = [
            engine.submit("story", name, max_new_tokens=60, eos_token_id=None) for name in ("a1", "a0", "a1", "a0")
        ]
        assert engine.stats().running == 4
        waiting = engine.submit("story", "a2", max_new_tokens=3)
        requests.append(engine.submit("story", "a1", max_new_tokens=60, eos_token_id=None))  # passes that one
        assert (engine.stats().running, engine.stats().waiting) == (5, 1)
        assert not any(request.done for request in (*requests, waiting))


def test_files_that_are_gone_when_a_slot_is_free_fail_their_request_alone(bases, kinds, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=1, host_adapters=0)
    for name in ("a0", "a1"):
        backbone.load(shutil.copytree(kinds("small" if name == "a0" else "other"), tmp_path / name))
    expected = backbone.generate("story", "a0", max_new_tokens=4)
    with backbone.engine(**SMALL) as engine:
        with backbone.using("a0"):
            requests = [engine.submit("story", name, max_new_tokens=4) for name in ("a1", "a0", None)]
            shutil.rmtree(tmp_path / "a1")
        with pytest.raises(CheckpointError, match="can't be read"):
            requests[0].result(10)
        assert requests[1].result(10).text == expected
        assert requests[2].result(10).tokens
        assert engine.stats().failed == 1


def test_a_request_that_waits_for_a_slot_has_its_file_read_by_no_step(open_backbone):
    """Where the host keeps no adapters, it is read when there is a slot for it."""
    backbone = open_backbone(1, host_adapters=0)
    expected = backbone.generate("story", "a1", max_new_tokens=4)
    with backbone.engine(**SMALL) as engine:
        with backbone.using("a0"):
            waiting = engine.submit("story", "a1", max_new_tokens=4)
            reads = backbone.stats().disk_reads
            assert engine.submit("story", None, max_new_tokens=20, eos_token_id=None).result(10).tokens
            assert backbone.stats().disk_reads == reads
        assert waiting.result(10).text == expected
        assert backbone.stats().disk_reads == reads + 1


def test_a_slot_that_will_never_be_free_is_an_error(open_backbone):
    backbone = open_backbone(1)
    backbone.pin("a0")
    with backbone.engine(**SMALL) as engine:
        with pytest.raises(SlotsFullError, match="of 1 slots 1 are pinned"):
            engine.submit("story", "a1", max_new_tokens=4).result(10)
        assert engine.stats().waiting == 0
        assert engine.submit("story", "a0", max_new_tokens=4).result(10).tokens
        backbone.unpin("a0")
        assert engine.submit("story", "a1", max_new_tokens=4).result(10).tokens


def test_a_load_waits_for_the_slot_of_a_request(open_backbone, kinds):
    """Though this thread submitted it: a request ends by itself, not with a block of the thread's."""
    backbone = open_backbone(1)
    expected = backbone.generate("story", "a1", max_new_tokens=40, eos_token_id=None)
    with backbone.engine(**SMALL) as engine:
        request = engine.submit("story", "a1", max_new_tokens=40, eos_token_id=None)
        next(iter(request))
        backbone.load(kinds("biased"), "another")
        assert request.done
        assert request.result().text == expected
        assert engine.submit("story", "another", max_new_tokens=4).result(10).tokens


def test_a_crowd_leaves_a_slot_to_loads_and_other_calls(open_backbone, kinds):
    backbone = open_backbone(3)
    expected = backbone.generate("story", "a4", max_new_tokens=4)
    with backbone.engine(**SMALL) as engine:
        crowd = [
            engine.submit("story", name, max_new_tokens=40, eos_token_id=None) for name in ("a0", "a1", "a2", "a3") * 6
        ]
        next(iter(crowd[0]))
        assert len(engine.stats().running_adapters) == 2
        backbone.swap("a4", kinds("output"))
        assert backbone.generate("story", "a4", max_new_tokens=4) == expected
        assert not all(request.done for request in crowd)
        assert all(len(request.result(30).tokens) == 40 for request in crowd)


def test_an_adapter_that_comes_back_to_another_slot_is_read_there(open_backbone):
    """Between two steps that look alike: one request for it ended, other calls took its slot, another request came."""
    backbone = open_backbone(2)
    residency = backbone._residency
    step = Step(residency, backbone.device)
    adapter = residency.get("a0")

    def slots(identifier):
        request = Request(identifier, [7], adapter, Decoding(1, (), (), None), backbone.tokenizer, None)
        with residency.lease([adapter]) as lease:
            step.schedule([(request, 1, True)])
            return lease.slots, step.routing().slots

    first = slots("one")
    for name in ("a1", "a2"):
        with backbone.using(name):
            pass
    second = slots("two")
    assert first[0] == first[1] != second[1] == second[0]


def test_factors_are_laid_out_once_while_the_same_requests_go_on(open_backbone):
    backbone = open_backbone(4)
    laid_out = []
    route = backbone._residency.route
    backbone._residency.route = lambda *args: laid_out.append(1) or route(*args)
    with backbone.engine(**SMALL) as engine:
        laid_out.clear()
        steps = engine.stats().steps
        requests = [
            engine.submit("story", name, max_new_tokens=40, eos_token_id=None) for name in ("a0", "a1", None, "a2")
        ]
        assert {len(request.result(20).tokens) for request in requests} == {40}
        assert engine.stats().steps - steps >= 40
    assert len(laid_out) <= 12  # a few while they join and leave, not one for each of the steps


def test_two_who_look_for_slots_at_once_begin_a_request_once(open_backbone, monkeypatch):
    """The loop, for a slot that fell free, and callers who submit."""
    backbone = open_backbone(1)
    expected = backbone.generate("story", "a1", max_new_tokens=3)
    lease = backbone._residency.lease

    @contextmanager
    def slowly(*asked, **settings):
        with lease(*asked, **settings) as routing:
            time.sleep(0.05)
            yield routing

    with backbone.engine(**SMALL) as engine:
        with backbone.using("a0"):
            waiting = engine.submit("story", "a1", max_new_tokens=3)
            monkeypatch.setattr(backbone._residency, "lease", slowly)
        others = []
        while not waiting.done:
            others.append(engine.submit("story", None, max_new_tokens=1))
            time.sleep(0.005)
        assert waiting.result().text == expected
        assert all(request.result(10).tokens for request in others)
        assert engine.stats().finished == 1 + len(others)


def test_an_idle_loop_keeps_nothing_that_was_laid_out(open_backbone, monkeypatch):
    backbone = open_backbone(3)
    kept = []
    make = step_cache.KeptBank.__init__

    def noted(self, *asked):
        kept.append(weakref.ref(self))
        make(self, *asked)

    monkeypatch.setattr(step_cache.KeptBank, "__init__", noted)
    with backbone.engine(**SMALL) as engine:
        requests = [engine.submit("story", name, max_new_tokens=4) for name in ("a0", "a1", None)]
        assert all(request.result(10).tokens for request in requests)
        deadline = time.monotonic() + 10
        while any(bank() is not None for bank in kept) and time.monotonic() < deadline:
            gc.collect()
            time.sleep(0.01)
        assert kept
        assert all(bank() is None for bank in kept)
