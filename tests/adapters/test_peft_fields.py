"""LoRA with what the slots can't hold: it runs through PEFT, and equals it; what they can hold stays in them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from lorary.adapters import Backbone
from tiny import make_adapter, make_base, peft_reference

ROW = [7, 8, 9, 10, 11]
PROMPT = "profit rose the bank"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


def block_diagonal():
    from peft.tuners.lora.config import BdLoraConfig

    return {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], nblocks=2), "target_modules": ["q_proj"]}


def monte_carlo():
    from peft.tuners.lora.config import MontecloraConfig

    return {"monteclora_config": MontecloraConfig(), "target_modules": ["q_proj"]}


def velora():
    from peft.tuners.lora.config import VeloraConfig

    return {"velora_config": VeloraConfig(), "target_modules": ["q_proj"]}


CASES = [
    ("llama", "text-generation", {"alora_invocation_tokens": [8, 9]}),
    ("llama", "text-generation", {"trainable_token_indices": [7, 8]}),
    ("tied", "text-generation", {"trainable_token_indices": {"embed_tokens": [7, 8]}}),
    ("gpt2", "text-generation", {"bias": "all"}),
    ("bert", "text-classification", {"bias": "all"}),
    ("bert", "text-classification", {"bias": "lora_only"}),
    ("llama", "text-generation", {"layer_replication": [[0, 2], [1, 2]]}),
    ("llama", "text-generation", block_diagonal),
    ("llama", "text-generation", monte_carlo),
    ("llama", "text-generation", velora),
    ("tied", "text-generation", {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}),
    ("llama", "text-generation", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    ("tied", "text-generation", {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    ("llama", "text-generation", {"target_modules": ["q_proj"], "modules_to_save": ["norm"]}),
    ("llama", "text-generation", {"target_modules": ["q_proj"], "modules_to_save": ["layers.1"]}),
    ("bert", "feature-extraction", {"target_modules": ["query"], "modules_to_save": ["layer.1"]}),
    ("bert", "text-classification", {"target_modules": ["query"], "modules_to_save": ["LayerNorm"]}),
    ("bert", "feature-extraction", {"target_modules": ["query"], "modules_to_save": ["word_embeddings"]}),
    ("mixtral", "text-generation", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    ("qwen3_moe", "text-generation", {"target_modules": ["q_proj"], "target_parameters": EXPERTS}),
    ("mixtral", "text-generation", {"target_modules": ["q_proj"], "target_parameters": ["mlp.gate.weight"]}),
]


def peft_answer(reference):
    ids = torch.tensor([ROW])
    with torch.no_grad():
        output = reference(input_ids=ids, attention_mask=torch.ones_like(ids))
    return (output.logits if hasattr(output, "logits") else output.last_hidden_state)[0]


@pytest.mark.parametrize(("family", "task", "lora"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_through_peft(bases, tmp_path, family, task, lora):
    lora = lora() if callable(lora) else lora
    adapter = make_adapter(bases(family), tmp_path / "own", task=task, **lora)
    backbone = Backbone.from_pretrained(str(bases(family)))
    before = {name: p.detach().clone() for name, p in backbone.model.named_parameters()}
    backbone.load(adapter)
    assert backbone.stats().peft_bytes > 0
    assert backbone.stats().slots_used == 0
    reference = peft_reference(bases(family), adapter, task=task)
    want = peft_answer(reference)
    torch.testing.assert_close(backbone.logits([ROW], "own")[0], want, atol=1e-5, rtol=1e-5)
    with reference.disable_adapter():
        bare = peft_answer(reference)
    assert not torch.allclose(bare, want, atol=1e-3), "the test's adapter must change something"
    if task == "text-generation":
        inputs = backbone.tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False)
        made = reference.generate(**inputs, max_new_tokens=4, pad_token_id=0)[0]
        text = backbone.tokenizer.decode(made[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert backbone.generate(PROMPT, "own", max_new_tokens=4) == text
    assert all(torch.equal(before[name], p) for name, p in backbone.model.named_parameters())


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_attention_of_mixtures_of_experts_in_the_slots(bases, tmp_path, family):
    """Mixed in one batch with each other and the bare backbone, beside fused experts through PEFT."""
    backbone = Backbone.from_pretrained(str(bases(family)))
    experts = {"target_modules": ["q_proj"], "target_parameters": EXPERTS}
    want = {None: backbone.logits([ROW], None)[0]}
    for seed, (name, lora) in enumerate({"a": {}, "b": {"r": 8}, "experts": experts}.items(), start=1):
        adapter = make_adapter(bases(family), tmp_path / name, task="text-generation", seed=seed, **lora)
        backbone.load(adapter)
        want[name] = peft_answer(peft_reference(bases(family), adapter, task="text-generation"))
        torch.testing.assert_close(backbone.logits([ROW], name)[0], want[name], atol=1e-5, rtol=1e-5)
    assert backbone.stats().slots_used == 2
    names = ["a", None, "b", "a"]
    with torch.no_grad(), backbone.using(names) as model:
        got = model(input_ids=torch.tensor([ROW] * 4)).logits
    torch.testing.assert_close(got, torch.stack([want[name] for name in names]), atol=1e-5, rtol=1e-5)
    names = ["a", "experts", None]
    assert backbone.generate([PROMPT] * 3, names, max_new_tokens=4) == [
        backbone.generate(PROMPT, name, max_new_tokens=4) for name in names
    ]


def test_factors_of_single_experts_are_fused(bases, tmp_path):
    """As transformers 4 wrote them; PEFT fuses them, and the config's targets with them."""
    adapter = make_adapter(bases("mixtral"), tmp_path / "old", task="text-generation", target_modules=["q_proj"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    torch.manual_seed(3)
    sizes = {"w1": (32, 64), "w2": (64, 32), "w3": (32, 64)}
    for layer in range(2):
        for expert in range(4):
            for name, (inputs, outputs) in sizes.items():
                at = f"base_model.model.model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}"
                tensors[f"{at}.lora_A.weight"] = torch.randn(4, inputs) * 0.2
                tensors[f"{at}.lora_B.weight"] = torch.randn(outputs, 4) * 0.2
    save_file(tensors, adapter / "adapter_model.safetensors")
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": ["q_proj", *sizes]}))
    backbone = Backbone.from_pretrained(str(bases("mixtral")))
    backbone.load(adapter)
    want = peft_answer(peft_reference(bases("mixtral"), adapter, task="text-generation"))
    torch.testing.assert_close(backbone.logits([ROW], "old")[0], want, atol=1e-5, rtol=1e-5)


def test_whole_embeddings_that_the_config_doesnt_name(bases, tmp_path):
    """PEFT saves them where they are targeted; those of the backbone are no obstacle, others are refused."""
    from lorary.hub.errors import KeyMismatchError, UnsupportedAdapterError

    adapter = make_adapter(bases("llama"), tmp_path / "own", task="text-generation", bias="lora_only")
    backbone = Backbone.from_pretrained(str(bases("llama")))
    path = adapter / "adapter_model.safetensors"
    key, embedding = "base_model.model.model.embed_tokens.weight", backbone.body.embed_tokens.weight.detach()
    save_file(load_file(path) | {key: embedding.clone()}, path)
    backbone.load(adapter)
    for other in (embedding + 1, embedding.long()):
        save_file(load_file(path) | {key: other}, path)
        with pytest.raises(UnsupportedAdapterError, match="other values"):
            backbone.load(adapter)
    save_file(load_file(path) | {key: torch.cat([embedding, embedding])}, path)
    with pytest.raises(KeyMismatchError, match=r"lacks the new rows of 'lm_head\.weight'"):
        backbone.load(adapter)


@pytest.mark.parametrize("lora", [{}, {"trainable_token_indices": [7, 8]}], ids=["slot", "through PEFT"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "t5"])
def test_a_language_model_without_a_task_type(bases, tmp_path, family, lora):
    """PEFT saves none unless it was told; the class that it notes tells the language model from its body alone."""
    task = "seq2seq" if family == "t5" else "text-generation"
    adapter = make_adapter(bases(family), tmp_path / "own", task=task, task_type=None, **lora)
    body = make_adapter(bases(family), tmp_path / "body", task="feature-extraction", task_type=None)
    backbone = Backbone.from_pretrained(str(bases(family)))
    assert backbone.load(adapter).task == "text-generation"
    if family != "t5":
        want = peft_answer(peft_reference(bases(family), adapter, task=task))
        torch.testing.assert_close(backbone.logits([ROW], "own")[0], want, atol=1e-5, rtol=1e-5)
    text = backbone.generate(PROMPT, "own", max_new_tokens=4)
    shown = text if family == "t5" else PROMPT + text
    assert backbone.predict(PROMPT, "own", max_new_tokens=4) == [{"generated_text": shown}]
    assert backbone.load(body).task == "feature-extraction"
    if family != "t5":
        want = peft_answer(peft_reference(bases(family), body, task="feature-extraction"))
        torch.testing.assert_close(backbone.logits([ROW], "body")[0], want, atol=1e-5, rtol=1e-5)


def test_a_classifier_without_a_task_type(bases, tmp_path):
    settings = {"task": "text-classification", "task_type": None}
    headed = make_adapter(bases("bert"), tmp_path / "headed", modules_to_save=["classifier"], **settings)
    headless = make_adapter(bases("bert"), tmp_path / "headless", **settings | {"target_modules": ["query"]})
    backbone = Backbone.from_pretrained(str(bases("bert")))
    assert backbone.load(headed).task == "text-classification"
    want = peft_answer(peft_reference(bases("bert"), headed, task="text-classification"))
    torch.testing.assert_close(backbone.logits([ROW], "headed")[0], want, atol=1e-5, rtol=1e-5)
    assert backbone.load(headless).task == "feature-extraction"


def test_a_masked_language_model_without_a_task_type(tmp_path):
    """PEFT has no task type for it, so the class that it notes is all that a plain adapter can say."""
    from transformers import AutoModelForMaskedLM, pipeline

    base = make_base("bert", tmp_path / "base")
    AutoModelForMaskedLM.from_pretrained(base).save_pretrained(base)
    adapter = make_adapter(base, tmp_path / "it", task="fill-mask", target_modules=["query", "value"])
    backbone = Backbone.from_pretrained(str(base))
    assert backbone.load(adapter).task == "fill-mask"
    model = peft_reference(base, adapter, task="fill-mask").base_model.model
    wanted = pipeline("fill-mask", model=model, tokenizer=backbone.tokenizer)("profit [MASK] the bank", top_k=2)
    found = backbone.predict("profit [MASK] the bank", "it", top_k=2)
    assert [one["token_str"] for one in found] == [one["token_str"] for one in wanted]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in wanted], abs=1e-5)
