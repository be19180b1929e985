"""Mixed rows in Triton: PyTorch's numbers, and only where they are faster. Triton's interpreter runs them on a CPU."""

import importlib.util
import time
from pathlib import Path

import pytest
import torch
from packaging.version import Version

from arenas import by_formula, make_arena
from lorary.adapters import Backbone
from lorary.adapters.base.modules import LinearShape
from lorary.adapters.kernel import measured, on_gpu
from lorary.adapters.kernel.on_gpu import Plan
from lorary.adapters.layer.products import Products
from lorary.adapters.layer.slots import Arena, SiteSpec

SIZES = {"odd": (7, 13), "wide": (40, 171), "deep": (700, 70)}
MIXES = [((1, 2, 3), 1), ((0, 2, 0, 2), 3), ((3,) * 17 + (1, 2), 1), ((3, 0, 1), 40)]  # slots, vectors of each row
TOLERANCE = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 3e-2}
INTERPRETED = [torch.float32, torch.float16]  # the interpreter multiplies the bits of bfloat16 as whole numbers
SOURCE = Path(on_gpu.__file__).with_name("triton_kernels.py")


def load(name):
    """The kernels once more, as Triton's settings of the moment have them."""
    pytest.importorskip("triton", reason="needs Triton, which comes with torch's builds for CUDA")
    spec = importlib.util.spec_from_file_location(name, SOURCE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def add_rows():
    triton = pytest.importorskip("triton", reason="needs Triton, which comes with torch's builds for CUDA")
    if Version(triton.__version__) < Version("3.7"):
        pytest.skip("the interpreter of Triton before 3.7 doesn't take NumPy 2.4's arrays for numbers")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        return load("interpreted_kernels").add_rows


def by_hand(view, rank, plan, x, out):
    """What a kernel does, block by block."""
    x, out = x.view(-1, x.shape[-1]), out.view(-1, out.shape[-1])
    for block in range(plan.blocks):
        rows, slot = plan.rows[plan.start[block] : plan.start[block + 1]], plan.slot[block]
        assert 0 < len(rows) <= plan.most
        if view.gain is not None:
            out[rows] *= 1 + view.gain[slot]
        out[rows] += x[rows] @ view.a[slot, :, :rank] @ view.b[slot, :rank]
        if view.bias is not None:
            out[rows] += view.bias[slot]


@pytest.fixture
def on_cpu(monkeypatch, without_c):
    """Calls on the CPU ask which way is faster, as those on a GPU do."""
    monkeypatch.setattr(on_gpu, "kernel", lambda: by_hand)
    stand_on("cpu", monkeypatch)


def stand_on(device, monkeypatch):
    monkeypatch.setattr(on_gpu, "_ON", (device,))
    monkeypatch.setattr(measured, "_MEASURED", {})


def compare(run, arena, rank, dtype, slots, tokens, device="cpu"):
    """``run(products, path, x, out)`` against the formula, at each site."""
    products = Products(arena, slots, lambda path: rank)
    for path, (inputs, outputs) in SIZES.items():
        x = torch.randn(len(slots), tokens, inputs, dtype=dtype, device=device)
        out = torch.randn(len(slots), tokens, outputs, dtype=dtype, device=device)
        want = by_formula(arena, path, slots, x, out, rank)
        with torch.no_grad():
            run(products, path, x, out)
        torch.testing.assert_close(out, want, atol=TOLERANCE[dtype] * 4, rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("few", [2, 64])
@pytest.mark.parametrize(("rank", "width", "vectors"), [(1, 1, False), (3, 8, True), (23, 40, True), (128, 128, False)])
@pytest.mark.parametrize("dtype", INTERPRETED, ids=str)
def test_every_size_gives_the_formulas_numbers(add_rows, monkeypatch, dtype, rank, width, vectors, few):
    monkeypatch.setitem(add_rows.__globals__, "_FEW", few)  # blocks, from which on each is one program's
    arena = make_arena(SIZES, rank, width=width, dtype=dtype, vectors=vectors)

    def run(products, path, x, out):
        add_rows(arena.views[path], rank, Plan.of(products, len(x), x.shape[1], x.device, dtype), x, out)

    for slots, tokens in MIXES:
        compare(run, arena, rank, dtype, slots, tokens)


def test_large_blocks_are_for_many_vectors():
    products = Products(make_arena(SIZES, 1), (0, 1, 2), lambda path: 1)
    few, many, exact = (
        Plan.of(products, 3, each, torch.device("cpu"), dtype)
        for each, dtype in ((1, torch.bfloat16), (40, torch.bfloat16), (40, torch.float32))
    )
    assert (few.blocks, few.places, few.most) == (2, 2, 16)
    assert (many.blocks, many.places, many.most) == (2, 80, 64)
    assert (exact.blocks, exact.places, exact.most) == (6, 80, 16)


@pytest.mark.parametrize("kernel_is_faster", [True, False])
def test_the_faster_way_is_taken_and_gives_the_formulas_numbers(on_cpu, monkeypatch, kernel_is_faster):
    took = iter([1.0, 0.5, 0.75 if kernel_is_faster else 1.25] * len(SIZES))  # with A, without, in Triton
    monkeypatch.setattr(measured, "_seconds", lambda run, x: next(took))
    arena = make_arena(SIZES, 4)
    compare(Products.add, arena, 4, torch.float32, (0, 1, 2), 2)
    assert len(measured.measured()) == len(SIZES)
    assert {found.faster for found in measured.measured().values()} == {kernel_is_faster}
    asked = []
    monkeypatch.setattr(Products, "add_in_torch", lambda self, path, x, out: asked.append(path))
    with torch.no_grad():
        Products(arena, (0, 1, 2), lambda path: 4).add("odd", torch.randn(3, 2, 7), torch.randn(3, 2, 13))
    assert asked == ([] if kernel_is_faster else ["odd"])


def test_what_it_takes_is_measured(on_cpu, monkeypatch):
    monkeypatch.setattr(on_gpu, "kernel", lambda: lambda *args: by_hand(*args) or time.sleep(0.01))
    with torch.no_grad():
        Products(make_arena(SIZES, 4), (1, 2), lambda path: 4).add("odd", torch.randn(2, 1, 7), torch.randn(2, 1, 13))
    (found,) = measured.measured().values()
    assert not found.unused
    assert 0 < found.in_torch < 0.01 <= found.in_kernel


def test_modules_with_one_input_share_what_its_product_takes(on_cpu, monkeypatch):
    took = iter([1.0, 0.5, 0.6])
    monkeypatch.setattr(measured, "_seconds", lambda run, x: next(took))
    arena = Arena({path: SiteSpec(LinearShape(7, 7), torch.device("cpu")) for path in "qk"}, 4, 3, torch.float32)
    arena.same_input = {path: ["q", "k"] for path in "qk"}
    with torch.no_grad():
        Products(arena, (0, 1, 2), lambda path: 4).add("q", torch.randn(3, 2, 7), torch.randn(3, 2, 7))
    (found,) = measured.measured().values()
    assert found.in_torch == 0.75


def wrong(view, rank, plan, x, out):
    out += 1


def not_a_number(view, rank, plan, x, out):
    out += torch.nan


def failing(view, rank, plan, x, out):
    raise RuntimeError("out of resource: shared memory")


@pytest.mark.parametrize(
    ("kernel", "why"),
    [(wrong, "off, more than"), (not_a_number, "nan off, more than"), (failing, "RuntimeError: out of resource")],
)
def test_a_kernel_that_is_wrong_or_fails_is_not_used(on_cpu, monkeypatch, kernel, why):
    monkeypatch.setattr(on_gpu, "kernel", lambda: kernel)
    compare(Products.add, make_arena(SIZES, 4), 4, torch.float32, (0, 1, 2), 2)
    assert len(measured.measured()) == len(SIZES)
    for found in measured.measured().values():
        assert not found.faster
        assert why in found.unused


def test_what_is_not_known_yet_is_made_by_pytorch_and_asked_again(on_cpu, monkeypatch):
    def short_of_memory(view, rank, plan, x, out):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(on_gpu, "kernel", lambda: short_of_memory)
    compare(Products.add, make_arena(SIZES, 4), 4, torch.float32, (0, 1, 2), 2)
    with measured._LOCK:  # another thread measures
        compare(Products.add, make_arena(SIZES, 4), 4, torch.float32, (0, 1, 2), 2)
    arena = make_arena(SIZES, 4)
    products, out = Products(arena, (0, 1), lambda path: 4), torch.full((2, 1, 13), torch.inf)
    with torch.no_grad():
        products.add("odd", torch.randn(2, 1, 7), out)
    assert not measured.measured()


@pytest.mark.parametrize(
    ("rank", "x", "out"),
    [
        (0, torch.randn(2, 1, 7), torch.randn(2, 1, 13)),
        (200, torch.randn(2, 1, 7), torch.randn(2, 1, 13)),
        (4, torch.randn(2, 1, 7).double(), torch.randn(2, 1, 13).double()),
        (4, torch.randn(2, 1, 14)[..., :7], torch.randn(2, 1, 13)),
        (4, torch.randn(2, 0, 7), torch.randn(2, 0, 13)),
        (4, torch.randn(2, 1, 7, device="meta"), torch.randn(2, 1, 13, device="meta")),
    ],
    ids=["no adapter acts", "a large rank", "double", "gaps", "no vectors", "another device"],
)
def test_what_is_left_to_pytorch(on_cpu, rank, x, out):
    products = Products(make_arena(SIZES, max(rank, 1)), (1, 2), lambda path: rank)
    with torch.no_grad():
        assert not products._on_gpu.add(products, "odd", x, out)
    assert not measured.measured()


def test_gradients_are_left_to_pytorch(on_cpu):
    products = Products(make_arena(SIZES, 4), (1, 2), lambda path: 4)
    assert not products._on_gpu.add(products, "odd", torch.randn(2, 1, 7), torch.randn(2, 1, 13))


def test_a_block_of_many_shapes_keeps_few_plans(on_cpu, monkeypatch):
    monkeypatch.setattr(on_gpu, "faster", lambda *args: False)
    products = Products(make_arena(SIZES, 4), (1, 2), lambda path: 4)
    with torch.no_grad():
        for tokens in range(1, 60):
            products.add("odd", torch.randn(2, tokens, 7), torch.zeros(2, tokens, 13))
    assert len(products._on_gpu._plans) <= 16
    assert len(products._on_gpu._chosen) <= 16


def test_where_it_is_not_for(monkeypatch):
    monkeypatch.setattr(on_gpu, "kernel", lambda: pytest.fail("asked for"))
    assert Products(make_arena(SIZES, 4), (1, 2), lambda path: 4)._on_gpu is None  # on a CPU
    stand_on("cpu", monkeypatch)
    assert Products(make_arena(SIZES, 4), (1, 1), lambda path: 4)._on_gpu is None  # of one adapter
    assert Products(make_arena(SIZES, 4, dtype=torch.float64), (1, 2), lambda path: 4)._on_gpu is None


def test_it_can_be_switched_off_and_done_without(monkeypatch):
    with monkeypatch.context() as context:
        context.setenv("LORARY_KERNEL", "off")
        assert on_gpu.kernel.__wrapped__() is None
    monkeypatch.setattr(on_gpu, "find_spec", lambda name: None)
    assert on_gpu.kernel.__wrapped__() is None


@pytest.mark.parametrize("kernel", ["by hand", "in Triton"])
def test_generations_in_a_mixed_batch_are_each_rows_own(on_cpu, monkeypatch, bases, kinds, request, kernel):
    if kernel == "in Triton":
        add_rows = request.getfixturevalue("add_rows")
        monkeypatch.setattr(on_gpu, "kernel", lambda: add_rows)
    monkeypatch.setattr(on_gpu, "faster", lambda *args: True)
    backbone = Backbone.from_pretrained(str(bases("llama")))
    for name in ("large", "dora", "biased"):
        backbone.load(kinds(name), name)
    prompts, names = ["one two three", "four", "five six", "seven"], ["large", None, "dora", "biased"]
    made = []
    in_torch = Products.add_in_torch
    monkeypatch.setattr(Products, "add_in_torch", lambda self, *args: made.append(1) or in_torch(self, *args))
    mixed = backbone.generate(prompts, adapter=names, max_new_tokens=2)
    assert not made
    assert mixed == [
        backbone.generate(prompt, adapter=name, max_new_tokens=2) for prompt, name in zip(prompts, names, strict=True)
    ]


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_it_compiles_for_gpus(tmp_path, monkeypatch, dtype, capability):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    kernels = load("compiled_kernels")
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    pointers = dict.fromkeys(["x", "a", "b", "bias", "gain", "out"], f"*{dtype}") | {"middle": "*fp32"}
    pointers |= dict.fromkeys(["rows", "start", "slot"], "*i64") | {"slot_stride": "i64"}
    sizes = {"M": 16, "K": 64, "N": 64, "R": 16, "BIAS": True, "GAIN": True, "PRECISION": "ieee"}
    for kernel in (kernels.project_rows, kernels.expand_rows):
        signature = {name: "constexpr" if name in sizes else pointers.get(name, "i32") for name in kernel.arg_names}
        constants = {name: value for name, value in sizes.items() if name in signature}
        source = ASTSource(fn=kernel, signature=signature, constexprs=constants)
        made = compile(source, target=GPUTarget("cuda", capability, 32))
        assert made.metadata.shared <= 48 * 2**10  # what every GPU has
        assert "mma" in made.asm["ptx"] or dtype == "fp32"  # tensor cores


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_on_a_gpu_both_ways_give_the_formulas_numbers(dtype, monkeypatch):
    if on_gpu.kernel() is None:
        pytest.skip("needs Triton")
    stand_on("cuda", monkeypatch)
    arena = make_arena(SIZES, 16, dtype=dtype, vectors=True, device="cuda")
    for slots, tokens in MIXES:
        compare(Products.add, arena, 16, dtype, slots, tokens, "cuda")
        compare(Products.add_in_torch, arena, 16, dtype, slots, tokens, "cuda")
    assert not {found.unused for found in measured.measured().values()} - {""}
    with monkeypatch.context() as context:
        context.setattr(on_gpu, "faster", lambda *args: True)
        for slots, tokens in MIXES:
            compare(Products.add, arena, 16, dtype, slots, tokens, "cuda")
