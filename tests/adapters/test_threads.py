"""Threads: 32 of them generating while adapters are loaded, swapped, unloaded, pinned and outgrown."""

import threading

import pytest
import torch

from lorary.adapters import Backbone
from tiny import make_adapter
from variants import make_variants

PROMPTS = ["profit rose the bank", "story mother"]
THREADS = 32


@pytest.fixture(scope="module")
def folders(bases, tmp_path_factory):
    """Adapters for the tiny Llama: 32 of rank 2, and three of growing ranks on all linears."""
    base, folder = bases("llama"), tmp_path_factory.mktemp("threads")
    first = make_adapter(base, folder / "first", task="text-generation", r=2, target_modules=["q_proj", "down_proj"])
    made = make_variants(first, [f"a{index}" for index in range(THREADS)])
    for rank in (4, 8, 16):
        made[f"r{rank}"] = make_adapter(
            base, folder / f"r{rank}", task="text-generation", r=rank, target_modules="all-linear", seed=rank
        )
    return made


def run_all(workers):
    """Run functions in threads of their own; raises the first error of any."""
    errors = []

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in workers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"
    if errors:
        raise errors[0]


@pytest.fixture(scope="module")
def alone(bases, folders):
    """What each adapter, and the bare backbone, answers when nobody else asks."""
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=len(folders))
    for name, folder in folders.items():
        backbone.load(folder, name)
    return {name: backbone.generate(PROMPTS, name, max_new_tokens=3) for name in (*folders, None)}


@pytest.mark.parametrize("limits", [{"slots": 40}, {"slots": 6, "host_adapters": 10}])
def test_every_result_is_that_of_its_solo_run(bases, folders, alone, limits):
    backbone = Backbone.from_pretrained(str(bases("llama")), slot_wait=60, **limits)
    for index in range(THREADS):
        backbone.load(folders[f"a{index}"], lazy=True)
    wrong, turns = [], threading.Barrier(THREADS + 4)

    def hold(got, names):
        wanted = [alone[name][row] for row, name in enumerate(names)]
        if got != wanted:
            wrong.append((names, got, wanted))

    def generate(index):
        def work():
            turns.wait(60)
            for turn in range(3):
                mixed = [f"a{index}", None if turn == 0 else f"a{(index + turn) % THREADS}"]
                hold(backbone.generate(PROMPTS, mixed, max_new_tokens=3), mixed)

        return work

    def outgrow():
        turns.wait(60)
        for name in ("r4", "r8", "r16"):
            backbone.load(folders[name])
            hold(backbone.generate(PROMPTS, name, max_new_tokens=3), [name, name])

    def churn():
        turns.wait(60)
        for index in range(8):
            backbone.load(folders[f"a{index}"], "scratch")
            backbone.swap("scratch", folders[f"a{index + 1}"])
            hold(backbone.generate(PROMPTS, "scratch", max_new_tokens=3), [f"a{index + 1}"] * 2)
            backbone.unload("scratch")

    def pin():
        turns.wait(60)
        for index in range(12):
            backbone.pin(f"a{index}")
            backbone.unpin(f"a{index}")

    def look():
        turns.wait(60)
        for index in range(12):
            backbone.prefetch([f"a{index}"])["a" + str(index)].result(timeout=60)
            stats = backbone.stats()
            assert stats.slots_used <= stats.slots

    run_all([*map(generate, range(THREADS)), outgrow, churn, pin, look])
    assert not wrong
    books = backbone._residency._books
    assert not books.readers
    assert len(set(books.slot_of.values())) == len(books.slot_of) <= limits["slots"]
    assert backbone.stats().host_adapters <= limits.get("host_adapters", 100)


def test_no_lock_is_held_across_a_generation(bases, folders, alone):
    """One generation stands still in its middle, by a stopping criterion; everything else goes on."""
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=4)
    for name in ("a0", "a1"):
        backbone.load(folders[name])
    inside, go_on, results = threading.Event(), threading.Event(), {}

    def wait(input_ids, scores, **_):
        inside.set()
        assert go_on.wait(60)
        return torch.zeros(len(input_ids), dtype=torch.bool)

    def blocked():
        results["blocked"] = backbone.generate(PROMPTS, "a0", max_new_tokens=3, stopping_criteria=[wait])

    def others():
        assert inside.wait(60)
        results["while blocked"] = backbone.generate(PROMPTS, "a1", max_new_tokens=3)
        backbone.swap("a0", folders["a2"])
        results["after the swap"] = backbone.generate(PROMPTS, "a0", max_new_tokens=3)
        backbone.load(folders["r16"])  # the arena grows
        results["larger rank"] = backbone.generate(PROMPTS, "r16", max_new_tokens=3)
        backbone.unload("a1")
        results["free"] = not go_on.is_set()
        go_on.set()

    run_all([blocked, others])
    assert results == {
        "blocked": alone["a0"],
        "while blocked": alone["a1"],
        "after the swap": alone["a2"],
        "larger rank": alone["r16"],
        "free": True,
    }


def test_no_call_waits_while_another_reads_a_file(bases, folders, monkeypatch):
    """A load that stands still in its reading holds up neither calls nor other loads."""
    from lorary.adapters.tiers.weights import WeightsReader

    backbone = Backbone.from_pretrained(str(bases("llama")), slots=4)
    backbone.load(folders["a0"])
    want = backbone.generate(PROMPTS, "a0", max_new_tokens=3)
    reading, go_on = threading.Event(), threading.Event()
    read = WeightsReader.read

    def slow(reader, checkpoint):
        if checkpoint.source.endswith("a1"):
            reading.set()
            assert go_on.wait(60)
        return read(reader, checkpoint)

    monkeypatch.setattr(WeightsReader, "read", slow)

    def others():
        assert reading.wait(60)
        assert backbone.generate(PROMPTS, "a0", max_new_tokens=3) == want
        backbone.load(folders["a2"])
        assert backbone.adapters == ["a0", "a2"]
        go_on.set()

    run_all([lambda: backbone.load(folders["a1"]), others])
    assert backbone.adapters == ["a0", "a2", "a1"]


def test_one_reading_serves_all_who_wait_for_it(bases, folders):
    backbone = Backbone.from_pretrained(str(bases("llama")), slots=4)
    backbone.load(folders["a0"], lazy=True)
    start = threading.Barrier(8)

    def work():
        start.wait(60)
        backbone.generate(PROMPTS, "a0", max_new_tokens=1)

    run_all([work] * 8)
    assert (backbone.stats().disk_reads, backbone.stats().swaps) == (1, 1)
