"""Adapters kept in other numbers than the backbone's: half the bytes, and what PEFT gives for weights rounded so."""

import shutil

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from lorary.adapters import Backbone
from lorary.adapters.layer.slots import LowRank
from lorary.adapters.matching.soundness import check_range
from lorary.adapters.proving.golden import write_golden
from lorary.hub.errors import NoEffectError, UnsupportedAdapterError, UsageError
from lorary.hub.manifest import Manifest
from tiny import make_adapter, make_base, peft_reference
from variants import change

HALVES = ["float16", "bfloat16"]
PLAIN = ["small", "large", "embedding", "output"]
IDS = torch.tensor([[7, 8, 9, 10], [9, 8, 7, 6], [12, 13, 14, 15], [5, 6, 7, 8], [10, 9, 12, 4]])
MIXED = ["small", None, "large", "output", "embedding"]
PROMPTS = ["profit rose", "the bank cash offer", "story", "a dog and a cat"]


@pytest.fixture
def backbone_of(bases, kinds):
    """A function that gives the tiny Llama with adapters of these kinds, kept in a dtype."""

    def make(adapter_dtype, names=PLAIN, **settings):
        backbone = Backbone.from_pretrained(str(bases("llama")), adapter_dtype=adapter_dtype, **settings)
        for name in names:
            backbone.load(kinds(name), name)
        return backbone

    return make


def answer(backbone, names, ids=IDS):
    with torch.no_grad(), backbone.using(names) as model:
        return model(input_ids=ids).logits


def scaled(factor, part):
    """The update of a checkpoint that multiplies one of its factors."""

    def update(tensors):
        for name, tensor in tensors.items():
            tensor.mul_(factor if part in name else 1)

    return update


def rounded_to(dtype):
    """The update of a checkpoint that rounds its factors; an embedding's own weights are saved beside them."""

    def update(tensors):
        tensors |= {name: tensor.to(dtype).float() for name, tensor in tensors.items() if "lora_" in name}

    return update


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", HALVES)
def test_logits_are_pefts_for_weights_rounded_so(backbone_of, bases, kinds, tmp_path, dtype):
    """Scales are powers of two here, so it doesn't matter that B is rounded with the scale in it."""
    backbone = backbone_of(dtype)
    mixed, solo = answer(backbone, MIXED), answer(backbone, ["large"])
    for row, name in enumerate(MIXED):
        if name is None:
            continue
        folder = shutil.copytree(kinds(name), tmp_path / name)
        change(folder, rounded_to(getattr(torch, dtype)))
        reference = peft_reference(bases("llama"), folder, task="text-generation")
        with torch.no_grad():
            want = reference(input_ids=IDS).logits
        torch.testing.assert_close(mixed[row], want[row], atol=1e-5, rtol=1e-5)
        if name == "large":
            torch.testing.assert_close(solo, want, atol=1e-5, rtol=1e-5)
    assert torch.equal(mixed[1], answer(backbone, [None])[1])


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", HALVES)
def test_gains_biases_and_factors_together_are_near_float32s(backbone_of, dtype):
    names = ["dora", "biased", "large"]
    exact, kept = backbone_of(None, names), backbone_of(dtype, names)
    bare = answer(exact, [None])[:3]
    want, got = answer(exact, names, IDS[:3]), answer(kept, names, IDS[:3])
    assert not torch.equal(got, want)
    off = (got - want).flatten(1).norm(dim=1) / (want - bare).flatten(1).norm(dim=1)
    assert (off < 4 * torch.finfo(getattr(torch, dtype)).eps).all()


@pytest.mark.parametrize("dtype", HALVES)
def test_slots_and_the_host_take_half_the_bytes(backbone_of, dtype):
    whole, half = backbone_of(None, slots=2).stats(), backbone_of(dtype, slots=2).stats()
    for size in ("arena_bytes", "slot_bytes", "host_bytes", "swapped_bytes"):
        assert getattr(half, size) * 2 == getattr(whole, size) > 0
    assert half.parts_bytes == whole.parts_bytes
    assert half.backbone_bytes == whole.backbone_bytes


def test_the_arena_grows_in_its_own_numbers(backbone_of):
    """And a block on the host is laid out anew without a change."""
    backbone = backbone_of("float16", ["small", "other"], slots=1)
    before = answer(backbone, ["small"])
    wanted = backbone_of("float16", ["larger"])
    backbone.load(wanted._calls.find("larger").checkpoint.source, "larger")
    torch.testing.assert_close(answer(backbone, ["small"]), before, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(answer(backbone, ["larger"]), answer(wanted, ["larger"]), atol=1e-6, rtol=1e-6)
    assert backbone._residency.arena.layout.dtype is torch.float16


@pytest.mark.parametrize("dtype", HALVES)
def test_generation_and_the_engine_answer_alike(backbone_of, dtype):
    backbone = backbone_of(dtype)
    rows = [(prompt, name) for name in (*PLAIN, None) for prompt in PROMPTS]
    prompts, names = zip(*rows, strict=True)
    alone = [backbone.generate(prompt, name, max_new_tokens=6) for prompt, name in rows]
    assert backbone.generate(list(prompts), list(names), max_new_tokens=6) == alone
    with backbone.engine(cache_tokens=512, batch_tokens=16, page_tokens=4, max_running=16) as engine:
        requests = [engine.submit(prompt, name, max_new_tokens=6) for prompt, name in rows]
        assert [request.result(20).text for request in requests] == alone


def test_compiled_steps_answer_alike_and_survive_swaps(tmp_path):
    torch._dynamo.reset()
    base = make_base("llama", tmp_path / "base", num_hidden_layers=1)  # every layer is traced alike
    lora = {
        "small": {"r": 2}, "large": {"r": 16}, "dora": {"use_dora": True}, "other": {"r": 4},
        "embedding": {"target_modules": ["embed_tokens", "v_proj"]},
        "output": {"target_modules": ["lm_head", "q_proj"]},
    }  # fmt: skip
    sites = {"target_modules": ["q_proj", "down_proj"]}
    folders = {
        name: make_adapter(base, tmp_path / name, task="text-generation", seed=seed, **sites | settings)
        for seed, (name, settings) in enumerate(lora.items())
    }
    backbone = Backbone.from_pretrained(str(base), adapter_dtype="float16")
    for name in [*PLAIN, "dora"]:
        backbone.load(folders[name])
    choices = [MIXED, ["large"], ["dora", "small", "embedding", "large", None]]
    want = [answer(backbone, names) for names in choices]
    counter = CompileCounter()
    backbone.compile(backend=counter, fullgraph=True)
    got = [answer(backbone, names) for names in choices]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-5)
    compiled = counter.frame_count
    backbone.swap("small", folders["other"])
    assert not torch.allclose(answer(backbone, MIXED)[0], got[0][0], atol=1e-3)
    assert counter.frame_count == compiled


def test_wider_numbers_than_the_backbones(backbone_of, bases):
    """A bfloat16 backbone's products are then made in float32, and else in its own."""
    alike = backbone_of(None, ["large"], dtype="bfloat16")._residency.arena.layout
    assert (alike.dtype, alike.computes) == (torch.bfloat16, torch.bfloat16)
    layers = backbone_of("float32", ["large"], dtype="bfloat16")._residency.arena.layout
    assert (layers.dtype, layers.computes) == (torch.float32, torch.float32)
    exact = answer(backbone_of(None, ["large"]), ["large"])
    off = {
        kept: float((answer(backbone_of(kept, ["large"], dtype="bfloat16"), ["large"]).float() - exact).norm())
        for kept in ("float32", None)
    }
    assert off["float32"] < 0.2 * exact.norm()
    assert off["float32"] != off[None]


def test_halves_of_two_kinds_are_multiplied_in_float32(backbone_of):
    backbone = backbone_of("float16", ["large", "small"], dtype="bfloat16")
    assert backbone._residency.arena.layout.computes is torch.float32
    mixed = answer(backbone, ["large", None, "small", None, "large"])
    assert torch.equal(mixed[1], answer(backbone, [None])[1])
    assert not torch.equal(mixed[0], answer(backbone, [None])[0])


@pytest.mark.parametrize(("part", "factor", "scale"), [("lora_A", 1e6, 2), ("lora_B", 1e6, 2), ("lora_B", 1e5, -2)])
def test_what_float16_cant_hold_is_refused_by_name(backbone_of, bases, tmp_path, part, factor, scale):
    folder = make_adapter(bases("llama"), tmp_path / "a", task="text-generation", lora_alpha=4 * scale)
    change(folder, scaled(factor, part))
    backbone = backbone_of("float16", ["small"])
    with pytest.raises(
        UnsupportedAdapterError, match=r"a: has values up to .* at '.*_proj', .*adapter_dtype='bfloat16'"
    ):
        backbone.load(folder)
    assert backbone.adapters == ["small"]


@pytest.mark.parametrize(("part", "most"), [("a", 65504), ("gain", 65504), ("b", 32752), ("bias", 32752)])
def test_every_part_has_to_fit_as_slots_have_it(part, most):
    """B and bias with the scale, which is 2."""
    for value in (most, most + 1):
        parts = {"a": torch.ones(1, 2), "b": torch.ones(2, 1), "bias": torch.ones(2), "gain": torch.ones(2)}
        parts[part][-1] = -value
        site = {"q_proj": LowRank(**parts, scale=2.0)}
        check_range(site, torch.bfloat16, "a")
        if value == most:
            check_range(site, torch.float16, "a")
        else:
            with pytest.raises(UnsupportedAdapterError, match="at 'q_proj', and float16 holds none beyond 65504"):
                check_range(site, torch.float16, "a")


def test_what_float16_rounds_to_nothing_is_refused(backbone_of, bases, tmp_path):
    """Its B alone is small, so with wider numbers it has an effect."""
    folder = make_adapter(bases("llama"), tmp_path / "a", task="text-generation")

    def update(tensors):
        for name, tensor in tensors.items():
            tensor.mul_(1e-9 if "lora_B" in name else 3e4)

    change(folder, update)
    backbone_of("bfloat16", []).load(folder)
    with pytest.raises(
        NoEffectError, match="its weights are too small for the backbone's dtype, or the one they are kept"
    ):
        backbone_of("float16", []).load(folder)


def test_a_merged_model_is_held_against_the_files(backbone_of, tmp_path):
    """And not against what slots of this dtype made of them, which is further off than a float32 merge may be."""
    merged = backbone_of("bfloat16", ["large"]).merge("large", tmp_path / "merged")
    assert merged.dtype == "float32"
    assert merged.difference < 1e-5


def test_a_blends_golden_logits_are_those_of_its_files(backbone_of, bases, kinds, tmp_path):
    parts = []
    for name in ("small", "large"):
        folder = shutil.copytree(kinds(name), tmp_path / name)
        plain = backbone_of(None, [])
        Manifest("text-generation", plain.identity, numerics=plain.numerics, golden_rows=((7, 8, 9),)).write(folder)
        write_golden(folder, [torch.zeros(44)])
        parts.append(folder)
    backbone = backbone_of("bfloat16", [])
    for folder in parts:
        backbone.load(folder)
    backbone.blend({"small": 0.7, "large": 0.3}, "both", output=tmp_path / "both", register=False)
    for kept, allowed in ((None, 1e-5), ("bfloat16", 5e-2)):
        served = backbone_of(kept, [])
        served.load(tmp_path / "both")
        report = served.verify("both")
        assert report.matches is True
        assert report.difference < allowed


@pytest.mark.parametrize("dtype", ["half", "int8", torch.int8, 16])
def test_dtypes_that_there_arent(bases, dtype):
    for base in (str(bases("llama")), "no/such-base"):
        with pytest.raises(UsageError, match="expected one of float32, bfloat16, float16"):
            Backbone.from_pretrained(base, adapter_dtype=dtype)
