"""The loader against PEFT on the same checkpoint, both loading it from disk."""

import pytest
import torch
from safetensors.torch import load_file

from lorary.adapters import Backbone
from tiny import make_adapter, peft_reference, task_class

ROWS = ([7, 8, 9, 10, 11], [12, 13, 14], [6, 20, 21, 22, 23, 24, 3])
CASES = [
    ("bert", "text-classification"), ("bert", "token-classification"), ("bert", "feature-extraction"),
    ("distilbert", "text-classification"), ("distilbert", "token-classification"),
    ("roberta", "text-classification"), ("roberta", "token-classification"),
    ("gpt2", "text-generation"), ("gpt2", "text-classification"), ("gpt2", "token-classification"),
    ("llama", "text-generation"), ("llama", "text-classification"),
    ("t5", "seq2seq"), ("t5", "text-classification"),
]  # fmt: skip


def peft_logits(reference, row, task, family):
    row = [*row, 3] if family == "t5" and task == "text-classification" and row[-1] != 3 else row
    inputs = {"input_ids": torch.tensor([row]), "attention_mask": torch.ones(1, len(row), dtype=torch.long)}
    if task == "seq2seq":
        inputs["decoder_input_ids"] = torch.tensor([[0, *row[:3]]])
    with torch.no_grad():
        output = reference(**inputs)
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0], row


def assert_equals_peft(base, adapter, task, family, *, tolerance=1e-5, backbone=None, reference=None):
    backbone = backbone or Backbone.from_pretrained(str(base))
    reference = reference or peft_reference(base, adapter, task=task)
    name = backbone.load(adapter).name
    bare_differs = False
    for row in ROWS:
        want, row = peft_logits(reference, row, task, family)
        got = backbone.logits([row], name)[0]
        assert got.shape == want.shape
        torch.testing.assert_close(got, want.float(), atol=tolerance, rtol=tolerance)
        with reference.disable_adapter():
            bare_differs |= not torch.allclose(peft_logits(reference, row, task, family)[0], want, atol=1e-3)
    assert bare_differs, "the test's adapter must change something, or equality proves nothing"


def extra(family, task):
    """T5's classification head isn't among those that PEFT saves unasked."""
    return {"modules_to_save": ["classification_head"]} if (family, task) == ("t5", "text-classification") else {}


@pytest.mark.parametrize(("family", "task"), CASES)
def test_every_family_and_task(bases, tmp_path, family, task):
    adapter = make_adapter(bases(family), tmp_path / "adapter", task=task, **extra(family, task))
    assert_equals_peft(bases(family), adapter, task, family)


@pytest.mark.parametrize("rank", [1, 2, 8, 16, 64])
def test_ranks(bases, tmp_path, rank):
    # As strong at every rank: one direction times eight amplifies float32's rounding, PEFT's too, past the tolerance.
    lora = {"r": rank, "lora_alpha": round(4 * rank**0.5)}
    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task="text-generation", **lora)
    assert_equals_peft(bases("llama"), adapter, "text-generation", "llama")


@pytest.mark.parametrize(
    "lora",
    [
        {"use_rslora": True, "r": 8, "lora_alpha": 5},
        {"rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\.up_proj": 7}},
        {"alpha_pattern": {"v_proj": 3, "down_proj": 64}},
        {"rank_pattern": {"q_proj": 3}, "alpha_pattern": {"q_proj": 5, "k_proj": 1}},
        {"lora_bias": True},
        {"layers_to_transform": [1]},
        {"target_modules": r".*\.(q_proj|down_proj)"},
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "lm_head"]},
        {"target_modules": ["q_proj", "v_proj"], "exclude_modules": ["layers.0.self_attn.q_proj"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
        {"target_modules": ["q_proj"], "modules_to_save": ["down_proj"]},
    ],
    ids=str,
)
def test_configurations(bases, tmp_path, lora):
    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task="text-generation", **lora)
    assert_equals_peft(bases("llama"), adapter, "text-generation", "llama")


def test_conv1d_trained_whole(bases, tmp_path):
    lora = {"target_modules": ["c_attn"], "modules_to_save": ["c_fc"]}
    adapter = make_adapter(bases("gpt2"), tmp_path / "adapter", task="text-generation", **lora)
    assert_equals_peft(bases("gpt2"), adapter, "text-generation", "gpt2")


VARIANTS = [
    ("llama", {"use_dora": True}),
    ("llama", {"use_dora": True, "target_modules": ["q_proj", "embed_tokens"], "r": 3, "use_rslora": True}),
    ("llama", {"target_modules": ["embed_tokens"]}),
    ("llama", {"target_modules": ["embed_tokens", "lm_head", "v_proj"], "rank_pattern": {"embed_tokens": 7}}),
    ("gpt2", {"use_dora": True}),
    ("gpt2", {"target_modules": ["wte", "wpe", "c_attn"]}),
    ("tied", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("tied", {"target_modules": ["lm_head", "q_proj"], "use_dora": True}),
    ("gemma3", {"target_modules": ["embed_tokens", "q_proj"]}),
    ("gemma3", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
]


@pytest.mark.parametrize(("family", "lora"), VARIANTS, ids=str)
def test_dora_and_embeddings(bases, tmp_path, family, lora):
    adapter = make_adapter(bases(family), tmp_path / "adapter", task="text-generation", **lora)
    assert_equals_peft(bases(family), adapter, "text-generation", family)


@pytest.mark.parametrize("task", ["text-classification", "feature-extraction"])
def test_dora_undoes_the_bias_of_the_module(bases, tmp_path, task):
    """BERT's linears have biases; they are random here, since new ones are zero."""
    model = task_class("feature-extraction").from_pretrained(bases("bert"))
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    base = tmp_path / "base"
    model.save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "adapter", task=task, use_dora=True)
    backbone = Backbone.from_model(task_class("feature-extraction").from_pretrained(base), None)
    assert_equals_peft(base, adapter, task, "bert", backbone=backbone)


def test_variants_share_a_batch(bases, tmp_path):
    """A gain, a bias, an adapted embedding and the bare backbone, each row its own."""
    variants = {
        "dora": {"use_dora": True},
        "bias": {"lora_bias": True, "r": 2, "init_lora_weights": False},
        "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
        "plain": {},
    }
    backbone = Backbone.from_pretrained(str(bases("llama")))
    ids = torch.tensor([ROWS[0]])
    want = {}
    for seed, (name, lora) in enumerate(variants.items()):
        adapter = make_adapter(bases("llama"), tmp_path / name, task="text-generation", seed=seed, **lora)
        backbone.load(adapter)
        with torch.no_grad():
            want[name] = peft_reference(bases("llama"), adapter, task="text-generation")(input_ids=ids).logits[0]
    with torch.no_grad():
        want[None] = backbone.model(input_ids=ids).logits[0]
    names = ["plain", "dora", None, "embedding", "bias", "dora", "embedding"]
    with torch.no_grad(), backbone.using(names) as model:
        for _ in range(2):
            got = model(input_ids=ids.expand(len(names), -1)).logits
            torch.testing.assert_close(got, torch.stack([want[name] for name in names]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "lora"), [*VARIANTS, ("llama", {"lora_bias": True})], ids=str)
def test_the_state_served_is_that_of_the_file(bases, tmp_path, family, lora):
    adapter = make_adapter(bases(family), tmp_path / "adapter", task="text-generation", **lora)
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(adapter)
    saved = load_file(adapter / "adapter_model.safetensors")
    state = backbone.state("adapter")
    assert set(state) == {key for key in saved if "lora_" in key}
    # The test's magnitudes are far from their norms, so taking DoRA's ratio out again costs digits.
    tolerance = 1e-3 if lora.get("use_dora") else 1e-6
    for key, tensor in state.items():
        torch.testing.assert_close(tensor, saved[key], atol=tolerance, rtol=tolerance)


def test_an_adapter_trained_on_the_bare_body_loads_under_a_language_model(bases, tmp_path):
    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task="feature-extraction")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    backbone.load(adapter)
    reference = peft_reference(bases("llama"), adapter, task="feature-extraction")
    with backbone.using("adapter"):
        got = backbone.body(input_ids=torch.tensor([ROWS[0]])).last_hidden_state
    torch.testing.assert_close(got, reference(input_ids=torch.tensor([ROWS[0]])).last_hidden_state, atol=1e-5, rtol=0)


def test_many_adapters_of_mixed_ranks_stay_right_together(bases, tmp_path):
    backbone = Backbone.from_pretrained(str(bases("llama")))
    adapters = [
        make_adapter(bases("llama"), tmp_path / f"r{rank}", task="text-generation", seed=rank, r=rank)
        for rank in (4, 64, 1, 16)
    ]
    for adapter in adapters:
        backbone.load(adapter)
    for adapter in adapters:
        reference = peft_reference(bases("llama"), adapter, task="text-generation")
        want, row = peft_logits(reference, ROWS[0], "text-generation", "llama")
        torch.testing.assert_close(backbone.logits([row], adapter.name)[0], want, atol=1e-5, rtol=1e-5)


GENERATION = [
    {"do_sample": False, "max_new_tokens": 8},
    {"num_beams": 3, "max_new_tokens": 6},
    {"num_beams": 4, "num_return_sequences": 2, "max_new_tokens": 6},
    {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 2},
]


@pytest.mark.parametrize("kwargs", GENERATION, ids=str)
@pytest.mark.parametrize(
    ("family", "task"), [("llama", "text-generation"), ("gpt2", "text-generation"), ("t5", "seq2seq")]
)
def test_generation(bases, tmp_path, family, task, kwargs):
    adapter = make_adapter(bases(family), tmp_path / "adapter", task=task, r=8)
    backbone = Backbone.from_pretrained(str(bases(family)))
    backbone.load(adapter)
    reference = peft_reference(bases(family), adapter, task=task)
    inputs = backbone.tokenizer(["profit rose the bank"], return_tensors="pt", return_token_type_ids=False)
    torch.manual_seed(0)
    sequences = reference.generate(**inputs, **kwargs, pad_token_id=0)
    start = 0 if family == "t5" else inputs["input_ids"].shape[1]
    want = backbone.tokenizer.batch_decode(sequences[:, start:], skip_special_tokens=True)
    torch.manual_seed(0)
    got = backbone.generate(["profit rose the bank"], "adapter", **kwargs)[0]
    assert (got if isinstance(got, list) else [got]) == want


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
@pytest.mark.parametrize(
    ("family", "task"), [("llama", "text-generation"), ("bert", "text-classification"), ("gpt2", "text-generation")]
)
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}], ids=str)
def test_quantized(bases, tmp_path, quantization, family, task, lora):
    """Quantized weights are the same bits for both, so only the order of additions differs: 1e-4 in float32."""
    from peft import PeftModel

    from lorary.adapters.base.quantization import guard_cpu, quantization_config

    adapter = make_adapter(bases(family), tmp_path / "adapter", task=task, **lora)
    backbone = Backbone.from_pretrained(str(bases(family)), quantization=quantization)
    kinds = {type(module).__name__ for module in backbone.model.modules()}
    assert {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization] in kinds
    labels = {"num_labels": 3} if "classification" in task else {}
    model = task_class(task).from_pretrained(
        bases(family),
        quantization_config=quantization_config(quantization, torch.float32),
        dtype=torch.float32,
        **labels,
    )
    guard_cpu(model)
    with torch.no_grad():
        model(input_ids=torch.tensor([ROWS[0]]))
    for module in model.modules():
        if type(module).__name__ == "Linear8bitLt":
            # PEFT's DoRA leaves 8-bit layers as if they were new, but without their scales; keep those they have.
            module.register_forward_pre_hook(lambda layer, _: setattr(layer.weight, "CB", None))
    reference = PeftModel.from_pretrained(model, adapter).eval()
    assert_equals_peft(bases(family), adapter, task, family, tolerance=1e-4, backbone=backbone, reference=reference)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("lora", [{}, {"use_dora": True}, {"target_modules": ["embed_tokens", "q_proj"]}], ids=str)
def test_half_precision(bases, tmp_path, dtype, lora):
    """PEFT keeps the factors in float32 there and the slots don't: within the tolerance for golden logits."""
    from lorary.adapters.proving.golden import TOLERANCE

    adapter = make_adapter(bases("llama"), tmp_path / "adapter", task="text-generation", **lora)
    backbone = Backbone.from_pretrained(str(bases("llama")), dtype=dtype)
    backbone.load(adapter)
    reference = peft_reference(bases("llama"), adapter, task="text-generation").to(getattr(torch, dtype))
    for row in ROWS:
        want, row = peft_logits(reference, row, "text-generation", "llama")
        got = backbone.logits([row], "adapter")[0]
        assert float((got - want.float()).abs().max() / (1 + want.abs().max())) < TOLERANCE[dtype]
