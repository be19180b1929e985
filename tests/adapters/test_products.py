"""The products of a call: rows in groups, what is copied once, and what sites with one input share."""

from dataclasses import dataclass

import pytest
import torch
from torch.nn.functional import linear

from lorary.adapters import Backbone
from lorary.adapters.base.modules import LinearShape
from lorary.adapters.layer import bank, products, step_cache
from lorary.adapters.layer.products import Products
from lorary.adapters.layer.rows import group_rows_by_slot, put_into_groups
from lorary.adapters.layer.slots import Arena, LowRank, SiteSpec
from lorary.adapters.layer.step_cache import StepCache
from lorary.adapters.tiers.blocks import pack
from tiny import make_adapter

pytestmark = pytest.mark.usefixtures("way")

CPU = torch.device("cpu")
RANKS = {1: 4, 2: 2, 3: 4, 4: 1}
SITES = {"q": (6, 8), "k": (6, 4), "o": (8, 6)}


@pytest.fixture(params=[torch.float32, torch.float16], ids=["float32", "kept in float16"])
def arena(request):
    """Four adapters of ranks 4, 2, 4 and 1 in slots 1 to 4, at three sites."""
    torch.manual_seed(0)
    sites = {path: SiteSpec(LinearShape(*shape), CPU, bias=True, gain=True) for path, shape in SITES.items()}
    arena = Arena(sites, rank=4, slots=4, dtype=request.param, computes=torch.float32)
    for slot, rank in RANKS.items():
        weights = {
            path: LowRank(torch.randn(rank, i), torch.randn(o, rank), torch.randn(o), 0.5, torch.randn(o))
            for path, (i, o) in SITES.items()
        }
        arena.place(slot, pack(arena.layout, weights))
    return arena


def expected(arena, path, slots, x, out):
    """The same, a row at a time."""
    rows = []
    for slot, own_x, own_out in zip(slots, x, out, strict=True):
        if slot == 0:
            rows.append(own_out)
            continue
        held = arena.read(slot, path, RANKS[slot])
        rows.append(own_out * (1 + held.gain) + linear(linear(own_x, held.a), held.b) + held.bias)
    return torch.stack(rows)


def one_pass(product, x):
    return {path: product.add(path, x[path], torch.ones(*x[path].shape[:-1], SITES[path][1])) for path in SITES}


@pytest.mark.parametrize("kept", [bank.COPIED_BYTES, 0])
@pytest.mark.parametrize(
    "slots",
    [
        (1, 2, 3, 4),
        (1, 1, 2, 2),  # groups as the rows stand
        (1, 2, 1, 2, 1),  # groups of unequal size, rows in disorder
        (0, 3, 0, 3, 3, 3, 1, 0),  # the bare backbone among them
        (2, 2, 2),  # one adapter
    ],
)
def test_each_row_gets_its_own_product_in_every_pass(arena, slots, kept, monkeypatch):
    monkeypatch.setattr(bank, "COPIED_BYTES", kept)
    rank_at = lambda path: max(RANKS[slot] for slot in slots if slot)  # noqa: E731
    for tokens in (3, 1):
        product = Products(arena, slots, rank_at)
        for _ in range(3):
            shared = torch.randn(len(slots), tokens, 6)
            x = {"q": shared, "k": shared, "o": torch.randn(len(slots), tokens, 8)}
            with torch.no_grad():
                for path, out in one_pass(product, x).items():
                    want = expected(arena, path, slots, x[path], torch.ones_like(out))
                    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("slots", [(1, 1, 2), (1, 2), (3, 1, 3, 3, 3, 2)])
def test_passes_of_more_rows_in_one_call(arena, slots):
    """Beams, answers, or tokens one after the other: other groups than those of the rows as they were given."""
    product = Products(arena, slots, lambda path: 4)
    with torch.no_grad():
        for repeats in (1, 2, 5, 1, 2):
            repeated = [slot for slot in slots for _ in range(repeats)]
            shared = torch.randn(len(repeated), 6)
            x = {"q": shared, "k": shared, "o": torch.randn(len(repeated), 8)}
            for path, out in one_pass(product, x).items():
                want = expected(arena, path, repeated, x[path], torch.ones_like(out))
                torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)


def test_sites_that_share_an_input_share_a_product(arena, monkeypatch, without_c):
    made = []
    project = products.project
    monkeypatch.setattr(products, "project", lambda x, a, groups: made.append(a.shape) or project(x, a, groups))
    product = Products(arena, (1, 2), lambda path: 4)
    for _ in range(2):
        shared = torch.randn(2, 1, 6)
        with torch.no_grad():
            one_pass(product, {"q": shared, "k": shared, "o": torch.randn(2, 1, 8)})
    assert made[-2:] == [(2, 6, 8), (2, 8, 4)]  # q and k in one, then o


def test_an_input_that_is_written_to_is_projected_again(arena):
    product = Products(arena, (1, 2), lambda path: 4)
    x = torch.randn(2, 1, 6)
    with torch.no_grad():
        for _ in range(2):
            product.add("q", x, torch.ones(2, 1, 8))
            x.mul_(-3)
            out = product.add("k", x, torch.ones(2, 1, 4))
    torch.testing.assert_close(out, expected(arena, "k", (1, 2), x, torch.ones(2, 1, 4)), atol=1e-5, rtol=1e-5)


def test_groups_waste_little():
    for slots in ([1] * 20 + [2, 3, 4] * 4, list(range(1, 33)), [1] * 31 + [2], [0] * 30 + [5, 6]):
        groups = group_rows_by_slot(slots, CPU)
        adapted = sum(slot > 0 for slot in slots)
        places = len(slots) if groups.take is None else len(groups.take)
        assert places < 2 * adapted + len(set(slots))
        assert groups.slots.all()  # none for the bare backbone


def test_a_group_without_rows_adds_nothing_to_the_row_that_fills_it():
    groups = put_into_groups((0, 3), (1, 3), CPU)
    out = torch.zeros(2, 1)
    groups.spread(torch.ones(2, 1, 1), out)
    assert out.flatten().tolist() == [0, 1]


@dataclass(frozen=True)
class Resident:
    """As much of an adapter as laying it out asks for."""

    digest: str
    rank: int

    def rank_at(self, path):
        return self.rank


@pytest.mark.parametrize("spare", [4, 0.1])
def test_what_is_kept_serves_steps_of_other_rows(arena, spare, monkeypatch):
    """Requests join, leave and change places; adapters come to other slots; each step is as if it were the only one."""
    monkeypatch.setattr(step_cache, "_SPARE", spare)
    keeper = StepCache()
    residents = {slot: Resident(f"digest {slot}", rank) for slot, rank in RANKS.items()}
    steps = [
        ((1, 2, 3), (1, 1, 1)),
        ((0, 0), (1, 2)),
        ((0, 3), (1, 1)),  # fewer than were laid out, and the bare backbone in the first row
        ((0, 2, 0), (1, 2, 1)),
        ((3, 2, 1), (1, 9, 2)),
        ((1, 4, 0, 3), (12, 1, 3, 1)),  # one more
        ((4, 4, 4, 1), (5, 5, 5, 1)),
        ((2, 0), (20, 1)),
    ]
    for round in range(3):
        for slots, lengths in steps:
            adapters = {slot: residents[slot] for slot in slots if slot}
            tokens = [slot for slot, length in zip(slots, lengths, strict=True) for _ in range(length)]
            product = keeper.packed(arena, adapters, tokens)
            for slot in set(slots):
                assert product.rows_of(slot, len(tokens), CPU).tolist() == [
                    i for i, t in enumerate(tokens) if t == slot
                ]
            shared = torch.randn(len(tokens), 6)
            x = {"q": shared, "k": shared, "o": torch.randn(len(tokens), 8)}
            with torch.no_grad():
                for path, out in one_pass(product, x).items():
                    want = expected(arena, path, tokens, x[path], torch.ones_like(out))
                    torch.testing.assert_close(out, want, atol=1e-5, rtol=1e-5)
        slot = 1 + round
        weights = {
            path: LowRank(torch.randn(RANKS[slot], i), torch.randn(o, RANKS[slot]), None, 0.5)
            for path, (i, o) in SITES.items()
        }
        arena.place(slot, pack(arena.layout, weights))
        residents[slot] = Resident(f"another in {slot}", RANKS[slot])


def test_no_more_is_kept_than_there_is_room_for(arena, monkeypatch, without_c):
    """What is beyond is copied in every pass."""
    copied, read = [], bank.Bank.read
    monkeypatch.setattr(bank.Bank, "read", lambda self, path: copied.append(path) or read(self, path))
    monkeypatch.setattr(bank, "COPIED_BYTES", 2 * 4 * (6 + 8) * 4)  # of "q" for two adapters
    product = Products(arena, (1, 2), lambda path: 4)
    x = {"q": torch.randn(2, 6), "k": torch.randn(2, 6), "o": torch.randn(2, 8)}
    with torch.no_grad():
        one_pass(product, x)
        copied.clear()
        one_pass(product, x)
    assert copied == ["k", "o"]


def test_steps_of_what_is_laid_out_copy_nothing_anew(arena, monkeypatch, without_c):
    """However their rows change; only an adapter that wasn't there, or another one in its slot, is laid out."""
    copied, read = [], bank.Bank.read
    monkeypatch.setattr(bank.Bank, "read", lambda self, path: copied.append(path) or read(self, path))
    keeper = StepCache()
    residents = {slot: Resident(f"digest {slot}", rank) for slot, rank in RANKS.items()}

    def copies(*slots):
        copied.clear()
        x = {path: torch.randn(len(slots), inputs) for path, (inputs, _) in SITES.items()}
        with torch.no_grad():
            for _ in range(2):
                one_pass(keeper.packed(arena, {slot: residents[slot] for slot in slots if slot}, slots), x)
        return len(copied)

    assert copies(1, 2, 3) == len(SITES)
    assert copies(3, 3, 2, 1) == 0
    assert copies(0, 2, 3) == 0  # one is absent
    assert copies(0, 1, 2, 3) == 0
    assert copies(1, 2, 3, 4) == len(SITES)
    assert copies(1, 0) == len(SITES)  # three of the four would be read by every step for nothing
    residents[1] = Resident("another", 4)
    assert copies(1, 0) == len(SITES)


@pytest.mark.parametrize("last", [(1, 2), (0, 2)])
def test_what_is_copied_late_is_not_taken_for_an_adapter_that_had_left_its_slot(arena, last):
    """A module that only some steps reach is copied when one does, and by then a slot may hold something else."""
    keeper, residents = StepCache(), {1: Resident("one", 4), 2: Resident("two", 2)}
    x = {"q": torch.randn(2, 6), "o": torch.randn(2, 8)}
    with torch.no_grad():
        keeper.packed(arena, residents, (1, 2)).add("q", x["q"], torch.ones(2, 8))
        at_home = pack(arena.layout, {path: arena.read(2, path, 2) for path in SITES})
        arena.place(2, pack(arena.layout, {"o": LowRank(torch.randn(2, 8), torch.randn(6, 2), None, 1.0)}))
        step = keeper.packed(arena, {1: residents[1]}, (1, 1))
        step.add("o", x["o"], torch.ones(2, 6))  # copies for slot 2 too, which isn't that of `two` at present
        arena.place(2, at_home)
        present = {slot: residents[slot] for slot in last if slot}
        out = keeper.packed(arena, present, last).add("o", x["o"], torch.ones(2, 6))
    torch.testing.assert_close(out, expected(arena, "o", last, x["o"], torch.ones(2, 6)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "bert"])
def test_under_inference_mode_and_with_gradients(bases, tmp_path, family):
    """What is written in place under no_grad is a copy where autograd looks on."""
    task = "feature-extraction"
    backbone = Backbone.from_pretrained(str(bases(family)))
    for seed, name in enumerate("ab"):
        backbone.load(make_adapter(bases(family), tmp_path / name, task=task, seed=seed, use_rslora=True))
    ids = torch.tensor([[7, 8, 9], [9, 8, 7]])
    with torch.no_grad(), backbone.using(["a", "b"]):
        want = [backbone.body(input_ids=ids)[0] for _ in range(2)]
    with torch.inference_mode(), backbone.using(["a", "b"]):
        got = [backbone.body(input_ids=ids)[0] for _ in range(2)]
    torch.testing.assert_close(got, want)
    embedded = backbone.body.get_input_embeddings()(ids).requires_grad_()
    with backbone.using(["a", "b"]):
        for answer in want:
            out = backbone.body(inputs_embeds=embedded)[0]
            torch.testing.assert_close(out, answer)
            (gradient,) = torch.autograd.grad(out.square().sum(), embedded)
            assert bool(torch.isfinite(gradient).all())
            assert bool(gradient.any())
