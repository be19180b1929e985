"""The collector comes at any moment, in whatever thread, whatever locks that holds: nothing is waited for in it."""

import pytest

SMALL = {"cache_tokens": 512, "batch_tokens": 16, "page_tokens": 4, "max_running": 16}
BEGIN = """
import gc, signal, threading, time, weakref
from lorary.adapters import Backbone
from lorary.hub import Registry
gc.disable()
signal.alarm(40)  # a process that waits for itself is ended
backbone = Backbone.from_pretrained({base!r}, registry=Registry({registry!r}))
others = set(threading.enumerate())

def ends(thread):
    thread.join(30)
    assert not thread.is_alive()
    deadline = time.monotonic() + 30
    while (left := set(threading.enumerate()) - others) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not left, left
"""
ENGINE = """
backbone.load({adapter!r}, "one")
engine = backbone.engine(**{settings!r})
(loop,) = set(threading.enumerate()) - others
request = engine.submit("story", "one", max_new_tokens=55, eos_token_id=None)
next(iter(request))
engine.itself = engine  # in a circle, so that it is left to the collector
del engine
"""


@pytest.fixture
def alone(forks, bases, kinds, registry):
    """What a script prints, in the main thread of a process of its own, that follows BEGIN."""

    def run(script, **settings):
        values = {
            "base": str(bases("llama")), "adapter": str(kinds("small")), "settings": SMALL,
            "registry": str(registry.path),
        }  # fmt: skip
        whole = (BEGIN + script).format(**values)
        ended = forks.run("builtins:exec", whole, {"__name__": "__main__"}, **settings)
        assert ended.code == 0, ended
        return ended.out.strip()

    return run


def test_an_engine_in_the_main_thread_under_the_lock_that_its_loop_waits_for(alone):
    script = """
with backbone._residency.lock:
    gc.collect()
ends(loop)
print(request.done, backbone.stats().slots_used)
backbone.unload("one")
"""
    assert alone(ENGINE + script) == "True 1"


@pytest.mark.parametrize("how", ["open", "just dropped", "closed"])
def test_a_process_ends_with_an_engine(alone, how):
    end = {"open": "", "just dropped": "gc.collect()", "closed": "gc.collect(); ends(loop)"}
    begin = ENGINE if how != "open" else ENGINE.replace("del engine\n", "")
    assert alone(f"{begin}{end[how]}\nprint('done')\n", whole_end=True) == "done"


def test_followed_names_in_the_thread_that_is_about_to_wait(alone, bases, kinds, registry):
    registry.add(kinds("small"), name="sql", domain="code")
    script = """
backbone.follow("sql", interval=3600)
(watch,) = set(threading.enumerate()) - others
stop, gone = backbone._following._stop, weakref.ref(backbone._following)
backbone.itself = backbone
del backbone
while gone() is not None:  # the thread has it for a moment
    with stop._cond:  # as Event.wait has it for a moment
        gc.collect()
ends(watch)
print("done")
"""
    assert alone(script) == "done"
