"""Mixed rows in C: the same numbers as PyTorch's, whatever the sizes; and what is left to PyTorch."""

import gc
import os
import threading
import weakref
from contextlib import contextmanager
from functools import cache, partial

import pytest
import torch
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from arenas import by_formula, make_arena
from lorary.adapters.base.modules import LinearShape
from lorary.adapters.kernel import build, mixed_rows
from lorary.adapters.kernel.mixed_rows import MixedRows
from lorary.adapters.layer import pages
from lorary.adapters.layer.products import Products
from lorary.adapters.layer.slots import Arena, SiteSpec

pytestmark = pytest.mark.usefixtures("with_c")

CPU = torch.device("cpu")
SIZES = {"square": (32, 32), "odd": (7, 13), "wide": (40, 171), "narrow": (129, 5)}
# A processor with AVX-512 runs code for AVX2 too.
PROCESSORS = {"AVX512": ["AVX2", "AVX512"], "AVX2": ["AVX2"]}.get(torch.backends.cpu.get_cpu_capability(), [])


@pytest.fixture(scope="module", params=PROCESSORS)
def functions(request, tmp_path_factory, with_c):
    """A function that gives the C function for a kind of processor, compiled for factors of a dtype."""
    folder = tmp_path_factory.mktemp("cache")

    @cache
    def compiled(dtype):
        if request.param == torch.backends.cpu.get_cpu_capability():
            return mixed_rows.kernel(dtype)  # which other tests need too
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: request.param)
            monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
            return mixed_rows.function_of(build.library.__wrapped__(mixed_rows._KEPT[dtype]))

    return compiled


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("rank", "width"), [(1, 1), (3, 8), (4, 4), (8, 16), (12, 12), (16, 16), (23, 40), (64, 64), (112, 112)]
)
def test_every_size_gives_the_formulas_numbers(functions, rank, width, threads):
    holds_the_formula(functions(torch.float32), make_arena(SIZES, rank, width=width), rank, threads)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rank", "width"), [(1, 1), (3, 8), (8, 16), (16, 16), (23, 40), (64, 64)])
def test_every_size_of_factors_kept_in_halves(functions, rank, width, dtype):
    arena = make_arena(SIZES, rank, width=width, dtype=dtype, computes=torch.float32)
    for view in arena.views.values():  # numbers too small for an exponent of their own
        view.a[1, :2] *= 2e-5
        view.b[1, :, :3] *= 2e-5
    holds_the_formula(functions(dtype), arena, rank, 1)


def holds_the_formula(function, arena, rank, threads):
    for slots in [(1,), (1, 2, 3), (0, 2, 0, 2), (3, 3, 3, 3, 3, 1, 3, 3, 3, 3, 3, 3, 3, 2)]:
        products = Products(arena, slots, lambda path: rank)
        products._in_c = MixedRows(function, arena, lambda path: rank, False)
        for tokens in (1, 3, 9):
            for path, (inputs, outputs) in SIZES.items():
                x, out = torch.randn(len(slots), tokens, inputs), torch.randn(len(slots), tokens, outputs)
                want = by_formula(arena, path, slots, x, out, rank)
                with torch.no_grad(), torch_threads(threads):
                    assert products._in_c.add(products, path, x, out)
                torch.testing.assert_close(out, want, atol=1e-5 * rank, rtol=1e-5)


@contextmanager
def torch_threads(count):
    """Within the block alone: torch's own small products would wait for one another's threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_it_is_the_way_that_products_go():
    arena = make_arena(SIZES, 4)
    for slots in [(1, 2), (1, 1)]:
        products = Products(arena, slots, lambda path: 4)
        with torch.no_grad():
            products.add("odd", torch.randn(2, 7), torch.zeros(2, 13))
        assert products._in_c is not None
        assert not products._sites  # what the other way lays out


def left_to_torch():
    x = torch.randn(2, 3, 32)
    out = torch.randn(2, 3, 32)
    both = torch.randn(2, 3, 64)
    yield "double", x.double(), out.double()
    yield "an input of another kind", x.bfloat16(), out
    yield "gaps in the input", both[..., :32], out
    yield "gaps in the output", x, both[..., 32:].clone().transpose(0, 1).contiguous().transpose(0, 1)
    yield "no rows", x[:0], out[:0]
    yield "a subclass", x.as_subclass(torch.nn.Buffer), out
    yield "its own input", (own := torch.randn(2, 3, 32)), own
    held = torch.randn(10, 32)
    yield "a part of its own input", held[:6].view(2, 3, 32), held[1:7].view(2, 3, 32)
    yield "one vector", torch.randn(32), torch.randn(32)
    yield "an output of another shape", x, out.flatten(0, 1)
    yield "an input that is to be negated", torch._neg_view(x), out
    yield "an output that is to be negated", x, torch._neg_view(out)
    yield "zeros without memory", torch._efficientzerotensor((2, 3, 32)), out


@pytest.mark.parametrize(("x", "out"), [pytest.param(x, out, id=name) for name, x, out in left_to_torch()])
def test_what_is_left_to_pytorch(x, out):
    products = Products(make_arena(SIZES, 4), (1,), lambda path: 4)
    with torch.no_grad():
        before = out.clone()
        assert not products._in_c.add(products, "square", x, out)
        assert torch.equal(out, before)


def test_rows_that_are_many_and_alike_and_few_that_are_large(monkeypatch):
    arena = make_arena(SIZES, 4)
    one, several = Products(arena, (1,), lambda path: 4), Products(arena, (1, 2), lambda path: 4)
    monkeypatch.setattr(mixed_rows, "_MOST_ALIKE", 8)
    monkeypatch.setattr(mixed_rows, "_ALONE", 4 * (32 + 32) - 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with torch.no_grad():
        for products, rows, path, taken in [
            (one, 8, "odd", True),
            (one, 9, "odd", False),
            (several, 10, "odd", True),
            (one, 2, "square", False),
            (several, 2, "square", True),
        ]:
            inputs, outputs = SIZES[path]
            x, out = torch.randn(rows, inputs), torch.zeros(rows, outputs)
            assert products._in_c.add(products, path, x, out) is taken


@pytest.mark.parametrize("trace", [partial(torch.jit.trace, check_trace=False), lambda layer, x: make_fx(layer)(x)])
def test_who_traces_sees_the_product(trace):
    products = Products(make_arena(SIZES, 4), (1,), lambda path: 4)
    weight = torch.randn(13, 7)

    def layer(x):
        return products.add("odd", x, torch.nn.functional.linear(x, weight))

    x, other = torch.randn(2, 1, 7), torch.randn(2, 1, 7)
    with torch.no_grad():
        torch.testing.assert_close(trace(layer, x)(other), layer(other))


def two_rows(layer):
    return torch.vmap(layer)(torch.ones(3, 2, 7))


def tangent(layer):
    return torch.func.jvp(layer, (torch.ones(2, 7),), (torch.ones(2, 7),))[1]


def dual(layer):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(layer(forward_ad.make_dual(torch.ones(2, 7), torch.ones(2, 7)))).tangent


@pytest.mark.parametrize("transform", [two_rows, tangent, dual])
def test_who_transforms_gets_what_pytorch_gives(transform):
    arena, weight, made = make_arena(SIZES, 4), torch.randn(13, 7), []
    for in_c in (True, False):
        products = Products(arena, (1,), lambda path: 4)
        products._in_c = products._in_c if in_c else None
        with torch.no_grad():
            made.append(
                transform(lambda x, products=products: products.add("odd", x, torch.nn.functional.linear(x, weight)))
            )
    torch.testing.assert_close(*made)


def test_modes_of_two_threads_that_end_in_the_order_they_began():
    """PyTorch's own note of them is one for all threads, and wrong by then."""
    entered, left, seen = threading.Event(), threading.Event(), []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            seen.append(function)
            return function(*args, **kwargs or {})

    def other():
        with Watch():
            entered.set()
            left.wait()

    products = Products(make_arena(SIZES, 4), (1,), lambda path: 4)
    x, out = torch.randn(2, 7), torch.randn(2, 13)
    thread = threading.Thread(target=other)
    thread.start()
    entered.wait()
    with torch.no_grad():
        with Watch():
            left.set()
            thread.join()
            seen.clear()
            products.add("odd", x, out)
        assert torch.ops.aten.addmm_.default in seen
        assert products._in_c.add(products, "odd", x, out)


def test_a_block_of_many_shapes_keeps_few_plans():
    products = Products(make_arena(SIZES, 4), (1, 2), lambda path: 4)
    products._in_c._plans = {(rows, rows): mixed_rows.Plan() for rows in range(1000, 1017)}  # as threads may leave them
    with torch.no_grad():
        for tokens in range(1, 100):
            products.add("odd", torch.randn(2, tokens, 7), torch.zeros(2, tokens, 13))
    assert len(products._in_c._plans) <= 16


def test_what_a_call_laid_out_goes_with_it():
    """At once: the collector may be long in coming, and an arena is large."""
    arena, x = make_arena(SIZES, 4), torch.randn(2, 7)
    products = Products(arena, (1, 2), lambda path: 4)
    with torch.no_grad():
        products.add("odd", x, torch.zeros(2, 13))
    assert products._in_c._plans
    held = [weakref.ref(one) for one in (arena, products, x)]
    gc.disable()
    try:
        del arena, products, x
        assert [one() for one in held] == [None] * 3
    finally:
        gc.enable()


def test_threads_share_a_call():
    arena = make_arena(SIZES, 8)
    slots = (1, 2, 3, 0)
    products = Products(arena, slots, lambda path: 8)
    wrong = []

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        for tokens in range(1, 40):
            x = torch.randn(4, tokens, 32, generator=generator)
            with torch.no_grad():
                out = products.add("square", x, torch.zeros(4, tokens, 32))
            if not torch.allclose(out, by_formula(arena, "square", slots, x, torch.zeros(4, tokens, 32), 8), atol=1e-4):
                wrong.append((seed, tokens))

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_large_pages_are_memory_like_any_other():
    held = pages.zeros(3, 2**21, torch.float32, CPU)
    assert held.shape == (3, 2**21)
    assert not held.any()
    held[1] = 1
    child = os.fork()
    if child == 0:
        held[1] = 2  # its own copy
        os._exit(0)
    os.waitpid(child, 0)
    assert held.sum() == 2**21
    assert pages.zeros(1, 0, torch.bfloat16, CPU).shape == (1, 0)


def test_without_large_pages_there_is_memory_too(monkeypatch):
    monkeypatch.setattr(pages.mmap, "MADV_HUGEPAGE", 12345)
    assert not pages.zeros(3, 2**21, torch.float32, CPU).any()


def test_both_languages_have_the_same_limits():
    source = build._SOURCE.read_text()
    assert f"#define BLOCK {mixed_rows.BLOCK} " in source
    assert f"#define MOST_RANK {mixed_rows.MOST_RANK}\n" in source


@pytest.mark.parametrize(("device", "dtype"), [("cpu", torch.bfloat16), ("meta", torch.float32)])
def test_nothing_is_compiled_for_what_c_cannot_read(monkeypatch, device, dtype):
    monkeypatch.setattr(mixed_rows, "kernel", lambda: pytest.fail("asked for"))
    arena = Arena({"q": SiteSpec(LinearShape(8, 8), torch.device(device))}, rank=2, slots=1, dtype=dtype)
    assert Products(arena, (1,), lambda path: 2)._in_c is None


def test_without_a_way_to_ask_who_listens_there_is_no_c(monkeypatch):
    monkeypatch.setattr(mixed_rows, "ASKABLE", False)
    assert mixed_rows.kernel.__wrapped__() is None
