"""Slots, host and disk: budgets, what is read again, what is shared, prefetching, and the figures."""

import shutil
import threading
import time
import warnings

import pytest
import torch

from lorary.adapters import Backbone
from lorary.adapters.layer.slots import Layout
from lorary.adapters.tiers import weights
from lorary.adapters.tiers.blocks import Block
from lorary.adapters.tiers.content import Content
from lorary.adapters.tiers.host import Budget, HostTier
from lorary.hub.checkpoint import Checkpoint, read_checkpoint
from lorary.hub.errors import (
    ChangedFilesError,
    CheckpointError,
    KeyMismatchError,
    NoEffectError,
    ThrashingWarning,
    UnknownReferenceError,
    UsageError,
)
from methods import make_method
from tiny import make_adapter
from variants import change, make_variants

ROW = [[7, 8, 9]]


@pytest.fixture
def folders(bases, tmp_path):
    """A function: the folders of so many adapters for the tiny Llama, by name."""

    def make(count, **lora):
        first = make_adapter(bases("llama"), tmp_path / "first", task="text-generation", **lora)
        return make_variants(first, [f"a{index}" for index in range(count)])

    return make


def llama(bases, **settings):
    return Backbone.from_pretrained(str(bases("llama")), **settings)


def answers(backbone, names):
    return {name: backbone.logits(ROW, name)[0] for name in names}


def alone(bases, folders):
    backbone = llama(bases, slots=len(folders))
    for name, folder in folders.items():
        backbone.load(folder, name)
    return answers(backbone, folders)


def same(got, wanted):
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name]) for name in wanted)


@pytest.mark.parametrize("budget", [{"host_adapters": 3}, {"host_adapters": 0}, {"host_bytes": 0}, {}])
def test_adapters_come_back_from_wherever_they_are(bases, folders, budget):
    made = folders(8)
    backbone = llama(bases, slots=2, **budget)
    for name, folder in made.items():
        backbone.load(folder, name)
    for _ in range(2):
        same(answers(backbone, made), alone(bases, made))
    stats = backbone.stats()
    limit = 0 if "host_bytes" in budget else budget.get("host_adapters", 8)
    assert stats.host_adapters == limit
    assert stats.host_bytes == limit * stats.slot_bytes
    assert stats.slots_used == 2
    assert stats.disk_reads == (8 if limit == 8 else 24)
    assert stats.swaps == 24
    assert (stats.hits, stats.misses) == (0, 24)
    assert stats.evictions == 22


def test_a_budget_in_bytes(bases, folders):
    made = folders(5)
    wide = llama(bases)
    wide.load(made["a0"])
    slot = wide.stats().slot_bytes
    backbone = llama(bases, slots=1, host_bytes=f"{2 * slot + 100} B")
    for name, folder in made.items():
        backbone.load(folder, name)
    stats = backbone.stats()
    assert (stats.host_adapters, stats.host_bytes, stats.dropped) == (2, 2 * slot, 3)
    assert stats.disk_adapters == 3


def test_heads_leave_the_device_with_their_adapter(bases, tmp_path):
    first = make_adapter(bases("bert"), tmp_path / "first", task="text-classification")
    made = make_variants(first, ["a", "b", "c"])
    backbone = Backbone.from_pretrained(str(bases("bert")), slots=1, host_adapters=1)
    for name, folder in made.items():
        backbone.load(folder, name)
    one = backbone.stats().parts_bytes
    predictions = {name: backbone.predict("profit rose", name, top_k=None) for name in made}
    assert backbone.stats().parts_bytes == one
    wide = Backbone.from_pretrained(str(bases("bert")))
    for name, folder in made.items():
        wide.load(folder, name)
        assert wide.predict("profit rose", name, top_k=None) == predictions[name]
    assert wide.stats().parts_bytes == 3 * one


def test_a_file_that_changed_is_not_served(bases, folders):
    made = folders(2)
    backbone = llama(bases, slots=1, host_adapters=0)
    for name, folder in made.items():
        backbone.load(folder, name)
    before = answers(backbone, made)
    kept = shutil.copytree(made["a0"], made["a0"].parent / "kept")
    change(made["a0"], lambda tensors: tensors[next(iter(tensors))].add_(0.1))
    with pytest.raises(ChangedFilesError, match="have changed since they were loaded"):
        backbone.logits(ROW, "a0")
    same(answers(backbone, ["a1"]), {"a1": before["a1"]})
    shutil.rmtree(made["a0"])
    with pytest.raises(CheckpointError, match="can't be read"):
        backbone.logits(ROW, "a0")
    shutil.copytree(kept, made["a0"])
    same(answers(backbone, made), before)


def test_a_file_that_goes_away_as_soon_as_it_was_read(bases, folders, monkeypatch):
    """What was read of it is served."""
    made = folders(2)
    expected = alone(bases, made)
    backbone = llama(bases, slots=1, host_adapters=0)
    for name, folder in made.items():
        backbone.load(folder, name)
    files = backbone._residency._arrivals._origin
    factors = files.factors

    def gone(adapter, weights):
        shutil.rmtree(made[adapter.name])
        return factors(adapter, weights)

    monkeypatch.setattr(files, "factors", gone)
    same(answers(backbone, ["a0"]), {"a0": expected["a0"]})


def test_two_names_share_one_content(bases, folders):
    made = folders(2)
    copy = shutil.copytree(made["a0"], made["a0"].parent / "copy")
    backbone = llama(bases, slots=4)
    backbone.load(made["a0"], "sql")
    backbone.load(copy, "sql_v2")
    backbone.load(made["a1"], "other")
    stats = backbone.stats()
    assert (stats.slots_used, stats.host_adapters, stats.swaps) == (2, 2, 2)
    want = backbone.logits(ROW, "sql")[0]
    mixed = backbone.generate(["profit", "bank", "sales"], ["sql", "sql_v2", "other"], max_new_tokens=3)
    assert mixed == [
        backbone.generate(prompt, name, max_new_tokens=3)
        for prompt, name in [("profit", "sql"), ("bank", "sql_v2"), ("sales", "other")]
    ]
    backbone.unload("sql")
    assert torch.equal(backbone.logits(ROW, "sql_v2")[0], want)
    backbone.unload("sql_v2")
    assert backbone.stats().host_adapters == 1


def test_a_pin_is_a_names_and_holds_for_a_shared_slot(bases, folders):
    made = folders(3)
    backbone = llama(bases, slots=2)
    backbone.load(made["a0"], "sql")
    backbone.load(made["a0"], "sql_v2")
    backbone.pin("sql_v2")
    backbone.unload("sql")
    for name in ("a1", "a2"):
        backbone.load(made[name], name)
    before = backbone.stats()
    backbone.logits(ROW, "sql_v2")
    assert (backbone.stats().hits, backbone.stats().misses) == (before.hits + 1, before.misses)


def test_lazy_checks_headers_now_and_tensors_at_first_use(bases, folders):
    made = folders(3)
    change(made["a1"], lambda tensors: tensors.pop(next(iter(tensors))))
    change(made["a2"], lambda tensors: [t.zero_() for key, t in tensors.items() if "lora_B" in key])
    backbone = llama(bases)
    loaded = backbone.load(made["a0"], lazy=True)
    with pytest.raises(KeyMismatchError, match="missing"):
        backbone.load(made["a1"], lazy=True)
    backbone.load(made["a2"], lazy=True)
    assert backbone.adapters == ["a0", "a2"]
    assert (backbone.stats().disk_adapters, backbone.stats().disk_reads) == (2, 0)
    same(answers(backbone, ["a0"]), alone(bases, {"a0": made["a0"]}))
    for _ in range(2):
        with pytest.raises(NoEffectError, match="every lora_B is zero"):
            backbone.logits(ROW, "a2")
    assert backbone.stats().slots_used == backbone.stats().host_adapters == 1
    assert loaded.digest == backbone.load(made["a0"], "again").digest


def test_a_lazy_file_that_changes_before_its_first_use_is_refused(bases, folders):
    made = folders(1)
    backbone = llama(bases)
    backbone.load(made["a0"], lazy=True)
    change(made["a0"], lambda tensors: tensors[next(iter(tensors))].add_(0.1))
    with pytest.raises(ChangedFilesError):
        backbone.logits(ROW, "a0")


def damage(path):
    """Another last bit in a file of the registry's."""
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_what_the_catalogue_states_is_held_against_the_files(bases, folders, registry):
    registry.add(folders(1)["a0"], name="sql", domain="code")
    version = registry.resolve("sql")
    backbone = llama(bases, registry=registry)
    assert backbone.load("sql", lazy=True).digest == version.digest
    backbone.logits(ROW, "sql")
    damage(registry.checkpoint(version).files["adapter_model.safetensors"])
    with pytest.raises(ChangedFilesError, match="the catalogue states the digest"):
        backbone.load("sql", "other")


def test_what_the_catalogue_states_of_an_adapter_that_runs_through_peft(bases, registry, tmp_path, monkeypatch):
    folder = make_method(bases("llama"), tmp_path / "own", "IA3", task="text-generation")
    registry.add(folder, name="sql", domain="code")
    version = registry.resolve("sql")
    backbone = llama(bases, registry=registry)
    assert backbone.load("sql").digest == version.digest
    served = backbone.logits(ROW, "sql")[0]
    path = registry.checkpoint(version).files["adapter_model.safetensors"]
    digest_of, whole = Checkpoint.digest_of, path.read_bytes()

    def damaged_meanwhile(checkpoint, hashes):
        damage(path)
        return digest_of(checkpoint, hashes)

    with monkeypatch.context() as patch:  # what was hashed is what is served
        patch.setattr(Checkpoint, "digest_of", damaged_meanwhile)
        backbone.load("sql", "again")
    assert path.read_bytes() != whole
    assert torch.equal(backbone.logits(ROW, "again")[0], served)
    for lazy in (False, True):
        with pytest.raises(ChangedFilesError, match="the catalogue states the digest"):
            backbone.load("sql", "other", lazy=lazy)
    with pytest.raises(ChangedFilesError):
        backbone.swap("sql", "sql@1")
    assert torch.equal(backbone.logits(ROW, "sql")[0], served)


def test_hundreds_of_adapters_through_a_few_slots(bases, folders):
    made = folders(300, r=2, target_modules=["q_proj"])
    backbone = llama(bases, slots=8, host_adapters=64)
    for name, folder in made.items():
        backbone.load(folder, name, lazy=True)
    source = torch.Generator().manual_seed(0)
    skewed = (300 * torch.rand(24, 8, generator=source) ** 4).int().tolist()
    for batch in skewed:
        names = [f"a{index}" for index in batch]
        mixed = backbone.generate(["profit rose"] * 8, names, max_new_tokens=2)
        assert mixed[0] == backbone.generate("profit rose", names[0], max_new_tokens=2)
    stats = backbone.stats()
    assert (stats.slots_used, stats.host_adapters) == (8, 64)
    assert stats.hits + stats.misses == sum(len(set(batch)) + 1 for batch in skewed)
    assert stats.swaps == stats.misses
    assert stats.swap_percentiles.p50 <= stats.swap_percentiles.p90 <= stats.swap_percentiles.p99
    assert stats.swapped_bytes == stats.swaps * stats.slot_bytes


def test_prefetched_adapters_are_there_when_they_are_called(bases, folders):
    made = folders(4)
    backbone = llama(bases, slots=2, host_adapters=3)
    for name, folder in made.items():
        backbone.load(folder, name, lazy=True)
    for future in backbone.prefetch(["a2", "a3", "a1"]).values():
        future.result(timeout=30)
    assert backbone.stats().disk_reads == 3
    assert backbone.stats().misses == 0
    same(answers(backbone, ["a2", "a3"]), alone(bases, {name: made[name] for name in ("a2", "a3")}))
    assert (backbone.stats().hits, backbone.stats().disk_reads) == (2, 3)
    with pytest.raises(UnknownReferenceError):
        backbone.prefetch(["a2", "nothing"])


def test_a_failed_prefetch_says_so_and_the_call_says_it_again(bases, folders):
    made = folders(1)
    backbone = llama(bases)
    backbone.load(made["a0"], lazy=True)
    (made["a0"] / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError):
        backbone.prefetch(["a0"])["a0"].result(timeout=30)
    with pytest.raises(CheckpointError):
        backbone.logits(ROW, "a0")


def test_too_few_slots_are_warned_of_once_with_figures(bases, folders):
    made = folders(6)
    backbone = llama(bases, slots=2, host_adapters=0)
    for name, folder in made.items():
        backbone.load(folder, name, lazy=True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(30):
            answers(backbone, made)
        slot = backbone.stats().slot_bytes
    told = [str(warning.message) for warning in caught if warning.category is ThrashingWarning]
    assert len(told) == 1
    assert "6 adapters take turns in 2 slots: the last 64 calls missed 64 of 64 times" in told[0]
    assert f"slots=6 would hold them all, for {4 * slot / 1e6:.1f} MB more" in told[0]
    assert caught[0].filename == __file__


def test_enough_slots_are_not_warned_of(bases, folders):
    made = folders(3)
    backbone = llama(bases, slots=3, host_adapters=0)
    for name, folder in made.items():
        backbone.load(folder, name)
    with warnings.catch_warnings():
        warnings.simplefilter("error", ThrashingWarning)
        for _ in range(30):
            answers(backbone, made)


def test_a_call_waits_for_a_slot_that_another_thread_gives_back(bases, folders):
    made = folders(2)
    backbone = llama(bases, slots=1)
    for name, folder in made.items():
        backbone.load(folder, name)
    held, done = threading.Event(), threading.Event()

    def hold():
        with backbone.using("a0"):
            held.set()
            done.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait(30)
    threading.Timer(0.2, done.set).start()
    same(answers(backbone, ["a1"]), alone(bases, {"a1": made["a1"]}))
    holder.join()


def test_a_call_that_waits_for_a_slot_reads_its_file_no_more_whenever_another_ends(bases, folders):
    """Once before it waits, and once for the slot, where the host keeps nothing."""
    made = folders(2)
    backbone = llama(bases, slots=1, host_adapters=0)
    for name, folder in made.items():
        backbone.load(folder, name)
    found = []
    with backbone.using("a0"):
        waiter = threading.Thread(target=lambda: found.append(answers(backbone, ["a1"])))
        reads = backbone.stats().disk_reads
        waiter.start()
        while waiter.is_alive() and not backbone._residency._waiting:
            time.sleep(0.001)
        for _ in range(10):
            backbone.logits(ROW, None)
            time.sleep(0.01)
    waiter.join(30)
    same(found[0], alone(bases, {"a1": made["a1"]}))
    assert backbone.stats().disk_reads - reads <= 2


def test_a_grown_arena_takes_what_waited_on_the_host(bases, folders, tmp_path):
    made = folders(3)
    backbone = llama(bases, slots=2)
    for name, folder in made.items():
        backbone.load(folder, name)
    large = make_adapter(bases("llama"), tmp_path / "large", task="text-generation", r=32, target_modules="all-linear")
    backbone.load(large)
    reads = backbone.stats().disk_reads
    same(answers(backbone, made), alone(bases, made))
    stats = backbone.stats()
    assert stats.disk_reads == reads
    assert stats.host_bytes == 4 * stats.slot_bytes  # each in its new size alone


def test_the_least_recently_used_gives_up_its_block_first():
    host, first, second, third = HostTier(Budget(adapters=2)), Content("1"), Content("2"), Content("3")
    block = Block(Layout({}, 1, torch.float32, torch.float32), {})
    assert host.hold(first, block) == host.hold(second, block) == []
    host.touch([first])
    assert host.hold(third, block) == [second]
    assert first.block is third.block is block
    assert second.block is None


@pytest.mark.parametrize(
    ("text", "size"), [(7, 7), ("7", 7), ("2GB", 2 * 10**9), ("1.5 GiB", 3 * 2**29), ("10mb", 10**7), (None, None)]
)
def test_sizes(text, size):
    assert Budget.of(text, None).nbytes == size


@pytest.mark.parametrize("wrong", [
    {"host_bytes": "many"}, {"host_bytes": -1}, {"host_bytes": 1.5}, {"host_bytes": "9" * 40},
    {"host_adapters": -1}, {"slots": 0}, {"slots": 1.5},
    {"slot_wait": "long"}, {"slot_wait": float("nan")}, {"registry": "registry.db"},
], ids=str)  # fmt: skip
def test_wrong_limits(bases, wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        llama(bases, **wrong)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_blocks_for_cuda_are_pinned_and_copied_without_waiting(bases, folders):
    made = folders(6)
    backbone = llama(bases, slots=2, device="cuda")
    for name, folder in made.items():
        backbone.load(folder, name)
    held = [adapter.content.block for adapter in backbone._residency.resolve(list(made))]
    assert all(part.is_pinned() for block in held for part in block.parts.values())
    expected = answers(backbone, made)
    for _ in range(20):
        same(answers(backbone, made), expected)


def test_large_files_are_hashed_in_threads_to_the_same_digest(bases, folders, monkeypatch):
    made = folders(1)
    digest = llama(bases).load(made["a0"]).digest
    monkeypatch.setattr(weights, "_SEVERAL_THREADS", 1)
    assert llama(bases).load(made["a0"]).digest == digest == read_checkpoint(made["a0"]).digest
