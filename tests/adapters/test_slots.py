"""The stacked weights alone: what a slot has room for, how it is laid out, and what is read back out of it."""

import itertools

import pytest
import torch

from lorary.adapters.base.modules import LinearShape
from lorary.adapters.layer.slots import Arena, Layout, LowRank, SiteNeed, SiteSpec
from lorary.adapters.tiers.blocks import pack

CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
BOTH = (False, True)


def site(inputs=6, outputs=4, device=CPU, **vectors):
    return SiteSpec(LinearShape(inputs, outputs), device, **vectors)


def factors(rank=2, inputs=6, outputs=4, *, bias=False, gain=False, scale=1.0):
    a, b, first, second = (torch.randn(*size) for size in ((rank, inputs), (outputs, rank), (outputs,), (outputs,)))
    return LowRank(a, b, first if bias else None, scale, second if gain else None)


@pytest.mark.parametrize(("bias", "gain"), itertools.product(BOTH, BOTH))
def test_a_need_is_what_the_factors_have_and_a_site_widened_by_it_has_room_for_it(bias, gain):
    need = factors(3, bias=bias, gain=gain).need
    assert need == SiteNeed(3, bias, gain)
    for had, having in itertools.product(BOTH, BOTH):
        spec = site(bias=had, gain=having)
        assert spec.has_room_for(need) is ((had or not bias) and (having or not gain))
        assert spec.widened(need) == site(bias=had or bias, gain=having or gain)


def test_without_a_word_of_vectors_there_are_none():
    assert (site(), SiteNeed(2)) == (site(bias=False, gain=False), SiteNeed(2, bias=False, gain=False))


@pytest.mark.parametrize(
    ("needs", "fits"),
    [
        ({}, True),
        ({"q": SiteNeed(4)}, True),
        ({"q": SiteNeed(5)}, False),
        ({"q": SiteNeed(1, bias=True)}, False),
        ({"q": SiteNeed(1), "k": SiteNeed(4, bias=True)}, True),
        ({"q": SiteNeed(1), "o": SiteNeed(1)}, False),
    ],
)
def test_what_fits_into_a_layout(needs, fits):
    assert Layout({"q": site(), "k": site(bias=True)}, 4, torch.float32, torch.float32).fits(needs) is fits


@pytest.mark.parametrize("part", ["b", "bias", "gain"])
def test_factors_act_where_any_part_but_a_is_other_than_zero(part):
    held = factors(bias=True, gain=True)
    for name in ("b", "bias", "gain"):
        getattr(held, name).zero_()
    assert not held.acts
    getattr(held, part)[-1] = 1e-6
    assert held.acts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("bias", "gain"), itertools.product(BOTH, BOTH))
def test_what_was_placed_is_read_back_with_the_scale_in_it(dtype, bias, gain):
    """Of a rank below the layout's, beside others, at sites of other sizes."""
    sizes = {"q": (6, 4), "o": (4, 8)}
    sites = {path: site(*size, bias=bias, gain=gain) for path, size in sizes.items()}
    arena = Arena(sites, rank=5, slots=3, dtype=dtype)
    placed = {}
    for slot in (1, 2, 3):
        placed[slot] = {path: factors(slot, *size, bias=bias, gain=gain, scale=0.5) for path, size in sizes.items()}
        arena.place(slot, pack(arena.layout, placed[slot]))
    for slot, weights in placed.items():
        for path, given in weights.items():
            held = arena.read(slot, path, slot)
            assert (held.rank, held.scale) == (slot, 1.0)
            assert (held.bias is None, held.gain is None) == (not bias, not gain)
            wanted = {"a": given.a, "b": given.b * 0.5, "bias": bias and given.bias * 0.5, "gain": gain and given.gain}
            for name, want in wanted.items():
                if want is not False:
                    got = getattr(held, name)
                    assert got.dtype is torch.float32
                    assert torch.equal(got, want.to(dtype).float())
    assert not any(part[0].any() for view in arena.views.values() for part in (view.a, view.b))


def test_a_slot_has_a_place_for_each_number_and_no_more():
    sites = {"q": site(bias=True, gain=True), "k": site(bias=True), "o": site(4, 8)}
    arena = Arena(sites, rank=2, slots=3, dtype=torch.float32)
    found = (part for view in arena.views.values() for part in (view.a, view.b, view.bias, view.gain))
    parts = [part for part in found if part is not None]
    assert arena.slot_bytes == 4 * sum(part[0].numel() for part in parts)
    assert arena.nbytes == 4 * arena.slot_bytes  # three, and that of the bare backbone
    for number, part in enumerate(parts):
        part[:] = number
    assert all((part == number).all() for number, part in enumerate(parts))  # none lies upon another


def test_each_device_holds_its_own_sites():
    sites = {"q": site(device=CPU), "o": site(4, 8, device=ELSEWHERE), "k": site(6, 2, device=CPU)}
    layout = Layout(sites, 2, torch.float32, torch.float32)
    assert layout.devices == {CPU, ELSEWHERE}
    assert layout.numel_on(CPU) == 2 * (6 + 4) + 2 * (6 + 2)
    assert layout.numel_on(ELSEWHERE) == 2 * (4 + 8)
    assert [path for path, _ in layout.cut(CPU, torch.zeros(1, layout.numel_on(CPU)))] == ["q", "k"]
    arena = Arena(sites, 2, slots=1, dtype=torch.float32)
    assert {path: view.a.device for path, view in arena.views.items()} == {p: spec.device for p, spec in sites.items()}
    assert arena.slot_bytes == 4 * (layout.numel_on(CPU) + layout.numel_on(ELSEWHERE))


def test_a_site_of_an_embedding_says_so():
    sites = {"q": site(), "wte": SiteSpec(LinearShape(6, 4, embedding=True), CPU)}
    views = Arena(sites, 2, slots=1, dtype=torch.float32).views
    assert [view.embedding for view in views.values()] == [False, True]


def test_an_arena_never_changes_its_layout():
    sites = {"q": site()}
    arena = Arena(sites, 2, slots=1, dtype=torch.float32)
    sites["o"] = site(4, 8)
    assert list(arena.layout.sites) == list(arena.views) == ["q"]


def test_an_arena_made_in_inference_mode_is_written_to_outside_of_it():
    with torch.inference_mode():
        arena = Arena({"q": site()}, 2, slots=1, dtype=torch.float32)
    arena.place(1, pack(arena.layout, {"q": factors()}))
    assert arena.read(1, "q", 2).acts
