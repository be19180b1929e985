"""Slots: swaps while calls are in flight, eviction, pins, growth, threads."""

import threading
import time

import pytest
import torch

from lorary.adapters import Backbone
from lorary.hub.errors import KeyMismatchError, SlotsFullError, UnknownReferenceError
from tiny import make_adapter

IDS = torch.tensor([[2, 7, 8, 9]])


@pytest.fixture
def adapters(bases, tmp_path):
    """A function: the folders of text-generation adapters for the tiny Llama, by name and lora settings."""

    def make(**settings):
        return {
            name: make_adapter(bases("llama"), tmp_path / name, task="text-generation", seed=seed, **lora)
            for seed, (name, lora) in enumerate(settings.items(), start=1)
        }

    return make


def llama(bases, slots=16):
    return Backbone.from_pretrained(str(bases("llama")), slots=slots)


def logits(backbone, name):
    return backbone.logits([[7, 8, 9]], name)[0]


def test_a_call_in_flight_finishes_on_the_version_it_began_with(bases, adapters):
    folders = adapters(v1={}, v2={})
    backbone = llama(bases)
    backbone.load(folders["v1"], "legal")
    old = logits(backbone, "legal")
    with backbone.using("legal") as model:
        before = model(input_ids=IDS).logits
        backbone.swap("legal", folders["v2"])
        during = model(input_ids=IDS).logits
    with backbone.using("legal") as model:
        after = model(input_ids=IDS).logits
    torch.testing.assert_close(before, during)
    assert not torch.allclose(before, after, atol=1e-3)
    assert not torch.allclose(old, logits(backbone, "legal"), atol=1e-3)
    assert backbone.stats().slots_used == 1


def test_a_call_in_flight_survives_an_unload_and_a_larger_rank(bases, adapters):
    folders = adapters(small={"r": 2}, large={"r": 32, "target_modules": "all-linear"})
    backbone = llama(bases)
    backbone.load(folders["small"])
    with backbone.using("small") as model:
        before = model(input_ids=IDS).logits
        backbone.load(folders["large"])
        backbone.unload("small")
        during = model(input_ids=IDS).logits
    torch.testing.assert_close(before, during, atol=1e-6, rtol=0)
    assert backbone.adapters == ["large"]
    with pytest.raises(UnknownReferenceError, match="no adapter 'small'"):
        logits(backbone, "small")


def test_a_failed_swap_leaves_the_old_version_serving(bases, adapters, tmp_path):
    folders = adapters(good={}, bad={})
    weights = folders["bad"] / "adapter_model.safetensors"
    backbone = llama(bases)
    backbone.load(folders["good"], "legal")
    old = logits(backbone, "legal")
    from safetensors.torch import load_file, save_file

    tensors = load_file(weights)
    tensors.pop(next(iter(tensors)))
    save_file(tensors, weights)
    with pytest.raises(KeyMismatchError):
        backbone.swap("legal", folders["bad"])
    assert torch.equal(logits(backbone, "legal"), old)


def test_names_that_contain_one_another_dont_touch(bases, adapters):
    folders = adapters(sql={}, sql_v2={})
    backbone = llama(bases)
    backbone.load(folders["sql_v2"])
    held = logits(backbone, "sql_v2")
    backbone.load(folders["sql"])
    backbone.swap("sql", folders["sql"])
    backbone.unload("sql")
    assert torch.equal(logits(backbone, "sql_v2"), held)


def test_more_adapters_than_slots(bases, adapters):
    folders = adapters(a={}, b={}, c={})
    alone = {name: logits_of(bases, folder) for name, folder in folders.items()}
    backbone = llama(bases, slots=2)
    for folder in folders.values():
        backbone.load(folder)
    assert backbone.stats().slots_used == 2
    for name in ("a", "b", "c", "a", "c"):
        assert torch.equal(logits(backbone, name), alone[name])
    evictions = backbone.stats().evictions
    assert evictions >= 3
    with pytest.raises(SlotsFullError, match="3 different adapters in one batch are beyond the number of 2 slots"):
        backbone.generate(["profit"] * 3, ["a", "b", "c"], max_new_tokens=1)
    assert backbone.stats().evictions == evictions  # nobody lost a slot to what can't be


def logits_of(bases, folder):
    backbone = llama(bases)
    return logits(backbone, backbone.load(folder).name)


def test_pinned_adapters_stay(bases, adapters):
    folders = adapters(a={}, b={}, c={})
    backbone = llama(bases, slots=2)
    backbone.load(folders["a"])
    backbone.pin("a")
    for name in ("b", "c"):
        backbone.load(folders[name])
        logits(backbone, name)
    backbone.pin("c")
    with pytest.raises(SlotsFullError, match="2 are pinned"):
        logits(backbone, "b")
    backbone.unpin("a")
    logits(backbone, "b")


def test_a_pin_of_a_name_that_is_not_there(bases, adapters):
    """Or that is gone by the time its slot is free: what is loaded under it later isn't pinned."""
    folders = adapters(a={}, b={})
    backbone = llama(bases, slots=1)
    for change in (backbone.pin, backbone.unpin):
        with pytest.raises(UnknownReferenceError, match="no adapter 'a' is loaded"):
            change("a")
    backbone.load(folders["a"])
    backbone.load(folders["b"])
    found = []

    def pin():
        with pytest.raises(UnknownReferenceError):
            backbone.pin("a")
        found.append("refused")

    with backbone.using("b"):
        pinning = threading.Thread(target=pin)
        pinning.start()
        while pinning.is_alive() and not backbone._residency._waiting:
            time.sleep(0.005)
        backbone.unload("a")
    pinning.join(20)
    assert found == ["refused"]
    backbone.load(folders["a"])
    logits(backbone, "b")


def test_swapping_keeps_the_pin(bases, adapters):
    folders = adapters(v1={}, v2={}, other={})
    backbone = llama(bases, slots=2)
    backbone.load(folders["v1"], "legal")
    backbone.pin("legal")
    backbone.swap("legal", folders["v2"])
    backbone.load(folders["other"])
    backbone.pin("other")
    with pytest.raises(SlotsFullError):
        backbone.load(folders["v1"], "third")


def test_a_pinned_adapter_can_be_swapped_when_every_slot_is_pinned(bases, adapters):
    folders = adapters(v1={}, v2={}, other={})
    backbone = llama(bases, slots=1)
    backbone.load(folders["v1"], "legal")
    backbone.pin("legal")
    backbone.swap("legal", folders["v2"])
    assert torch.equal(logits(backbone, "legal"), logits_of(bases, folders["v2"]))
    with pytest.raises(SlotsFullError):
        backbone.load(folders["other"])
    with backbone.using("legal"), pytest.raises(SlotsFullError):
        backbone.swap("legal", folders["v1"])
    assert torch.equal(logits(backbone, "legal"), logits_of(bases, folders["v2"]))


def test_a_swap_leaves_a_shared_slot_to_the_other_pinned_name(bases, adapters):
    folders = adapters(v1={}, v2={})
    backbone = llama(bases, slots=1)
    for name in ("legal", "contracts"):
        backbone.load(folders["v1"], name)
        backbone.pin(name)
    with pytest.raises(SlotsFullError, match="1 are pinned"):
        backbone.swap("legal", folders["v2"])
    for name in ("legal", "contracts"):
        assert torch.equal(logits(backbone, name), logits_of(bases, folders["v1"]))
    backbone.unpin("contracts")
    backbone.swap("legal", folders["v2"])
    assert torch.equal(logits(backbone, "legal"), logits_of(bases, folders["v2"]))


def scores(found):
    """Of two labels, the probability of the first."""
    return [one["score"] if one["label"] == "LABEL_0" else 1 - one["score"] for one in found]


def test_a_call_in_several_passes_keeps_to_one_version(bases, adapters, tmp_path):
    folders = {
        name: make_adapter(bases("bert"), tmp_path / name, task="text-classification", seed=seed)
        for seed, name in enumerate(("v1", "v2"), start=1)
    }
    backbone = Backbone.from_pretrained(str(bases("bert")))
    backbone.load(folders["v1"], "tone")
    expected = backbone.predict(["profit rose"] * 4, "tone")
    passes = []

    def swap_after_the_first(module, args, output):
        passes.append(1)
        if len(passes) == 1:
            handle.remove()
            backbone.swap("tone", folders["v2"])

    handle = backbone.body.register_forward_hook(swap_after_the_first)
    # Batches of other sizes differ in their last digits; the two versions don't.
    assert scores(backbone.predict(["profit rose"] * 4, "tone", batch_size=1)) == pytest.approx(scores(expected))
    assert scores(backbone.predict(["profit rose"] * 4, "tone")) != pytest.approx(scores(expected), rel=1e-3)


def test_swap_needs_a_name_that_is_loaded(bases, adapters):
    with pytest.raises(UnknownReferenceError, match="loaded: none"):
        llama(bases).swap("legal", adapters(v1={})["v1"])


def test_threads_dont_overwrite_each_others_choice(bases, adapters):
    folders = adapters(a={"r": 2}, b={"r": 8}, c={"r": 16}, d={})
    backbone = llama(bases, slots=3)
    for folder in folders.values():
        backbone.load(folder)
    prompts = ["profit rose the bank", "story mother"]
    solo = {name: backbone.generate(prompts, name, max_new_tokens=5) for name in (*folders, None)}
    wrong: list[str] = []

    def work(name):
        for _ in range(5):
            got = backbone.generate(prompts, name, max_new_tokens=5)
            if got != solo[name]:
                wrong.append(f"{name}: {got}")

    def churn():
        for _ in range(10):
            backbone.load(folders["d"], "scratch")
            backbone.unload("scratch")

    names = ["a", "b", None, "a"]
    threads = [threading.Thread(target=work, args=(name,)) for name in names] + [threading.Thread(target=churn)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_one_slot_swaps_between_two_adapters(bases, adapters):
    folders = adapters(a={}, b={})
    backbone = llama(bases, slots=1)
    for folder in folders.values():
        backbone.load(folder)
    for name, folder in folders.items():
        assert torch.equal(logits(backbone, name), logits_of(bases, folder))


def test_figures(bases, adapters):
    folders = adapters(a={"r": 4}, b={"r": 8})
    backbone = llama(bases, slots=4)
    for folder in folders.values():
        backbone.load(folder)
    stats = backbone.stats()
    # Two layers: q and o 32 to 32, k and v 32 to 16 (two key-value heads), gate and up 32 to 64, down 64 to 32.
    numbers = 2 * (2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64))
    assert stats.adapters == ("a", "b")
    assert (stats.slots, stats.slots_used, stats.rank) == (4, 2, 8)
    assert stats.slot_bytes == 8 * numbers * 4
    assert stats.arena_bytes == 5 * stats.slot_bytes
    assert stats.backbone_bytes == sum(p.nbytes for p in backbone.model.parameters()) + sum(
        b.nbytes for b in backbone.model.buffers()
    )
    assert len(stats.swap_seconds) == 2
