"""Mixture of experts: attention and shared experts in the slots, mixed batches against PEFT one adapter at a time."""

import pytest
import torch
import transformers as t

from lorary.adapters import Backbone
from lorary.hub.errors import RoutingError
from tiny import VOCABULARY, load_base, make_tokenizer, task_class

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "num_key_value_heads": 4, "max_position_embeddings": 64, "num_experts_per_tok": 2,
}  # fmt: skip
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LATENT = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]
FAMILIES = {
    "mixtral": (lambda: t.MixtralConfig(**TOKENS, **SIZES, num_local_experts=4), ATTENTION),
    "qwen2_moe": (
        lambda: t.Qwen2MoeConfig(
            **TOKENS, **SIZES, num_experts=4, moe_intermediate_size=32, shared_expert_intermediate_size=32
        ),
        [*ATTENTION, "gate_proj", "up_proj", "down_proj", "shared_expert_gate"],
    ),
    "qwen3_moe": (
        lambda: t.Qwen3MoeConfig(**TOKENS, **SIZES, head_dim=8, num_experts=4, moe_intermediate_size=32), ATTENTION,
    ),
    "deepseek_v3": (
        lambda: t.DeepseekV3Config(
            **TOKENS, **SIZES, n_routed_experts=4, moe_intermediate_size=32, n_group=2, topk_group=1,
            n_shared_experts=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=8,
            qk_nope_head_dim=8, v_head_dim=8,
        ),
        # PEFT takes the names of its shared experts for those of the fused ones, whatever stands before them.
        LATENT,
    ),
    "olmoe": (lambda: t.OlmoeConfig(**TOKENS, **SIZES, num_experts=4), ATTENTION),
    "granitemoe": (lambda: t.GraniteMoeConfig(**TOKENS, **SIZES, num_local_experts=4), ATTENTION),
    "gpt_oss": (
        lambda: t.GptOssConfig(
            **TOKENS, **SIZES, head_dim=8, num_local_experts=4, rope_scaling=None,
            layer_types=["sliding_attention", "full_attention"],
        ),
        ATTENTION,
    ),
    "switch": (
        lambda: t.SwitchTransformersConfig(
            **TOKENS, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_decoder_layers=2, num_heads=4, num_experts=4,
            num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, decoder_start_token_id=0,
        ),
        ["q", "v", "o"],
    ),
}  # fmt: skip
EXPERTS = ["q", "v", "wi", "wo"]
PROMPTS = ["profit rose the bank", "a dog", "story mother house dog cat", "free cash offer"]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A function: a backbone of a family with adapters a and b on the named modules, and PEFT's model of each."""
    from peft import LoraConfig, PeftModel, get_peft_model

    def make(family, targets):
        folder = tmp_path_factory.mktemp(family)
        torch.manual_seed(0)
        config = FAMILIES[family][0]()
        kind = "seq2seq" if config.is_encoder_decoder else "text-generation"
        model = task_class(kind).from_config(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(folder / "base")
        make_tokenizer("t5" if config.is_encoder_decoder else family).save_pretrained(folder / "base")
        backbone = Backbone.from_pretrained(str(folder / "base"))
        references = {None: load_base(folder / "base", kind).eval()}
        for seed, name in enumerate("ab", start=1):
            torch.manual_seed(seed)
            settings = LoraConfig(
                r=4, target_modules=targets, init_lora_weights=False,
                task_type="SEQ_2_SEQ_LM" if config.is_encoder_decoder else "CAUSAL_LM",
            )  # fmt: skip
            get_peft_model(load_base(folder / "base", kind), settings).save_pretrained(folder / name)
            references[name] = PeftModel.from_pretrained(load_base(folder / "base", kind), folder / name).eval()
            backbone.load(folder / name)
        return backbone, references

    made = {}

    def give(family, targets):
        key = family, *targets
        if key not in made:
            made[key] = make(family, targets)
        return made[key]

    return give


def logits(model, ids):
    decoder = {"decoder_input_ids": ids[:, :3]} if model.config.is_encoder_decoder else {}
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids), **decoder).logits


NAMES = ["a", "b", None, "b", "a"]
IDS = torch.arange(5, 40)[:35].view(5, 7)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_a_mixed_pass_equals_peft_row_by_row(served, family):
    backbone, references = served(family, FAMILIES[family][1])
    assert backbone._inference.rows_first
    with backbone.using(NAMES) as model:
        mixed = logits(model, IDS)
    for row, name in enumerate(NAMES):
        want = logits(references[name], IDS[row : row + 1])[0]
        torch.testing.assert_close(mixed[row], want, atol=2e-5, rtol=1e-5)
        if name is not None:
            assert not torch.allclose(want, logits(references[None], IDS[row : row + 1])[0], atol=1e-2)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3", "switch"])
@pytest.mark.parametrize("kwargs", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
def test_generation(served, family, kwargs):
    backbone, references = served(family, FAMILIES[family][1])
    names = ["a", "b", None, "b"]
    mixed = backbone.generate(PROMPTS, names, max_new_tokens=5, do_sample=False, **kwargs)
    for prompt, name, got in zip(PROMPTS, names, mixed, strict=True):
        inputs = backbone.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        made = references[name].generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0, **kwargs)
        start = 0 if backbone.model.config.is_encoder_decoder else inputs["input_ids"].shape[1]
        want = backbone.tokenizer.batch_decode(made[:, start:], skip_special_tokens=True)
        assert (got if isinstance(got, list) else [got]) == want


def test_adapted_experts_take_turns(served):
    """Each of Switch's experts is given the tokens that the router chose: whose they are isn't to be seen there."""
    backbone, references = served("switch", EXPERTS)
    assert not backbone._inference.rows_first
    names = ["a", "b", None, "a"]
    made = backbone.generate(PROMPTS, names, max_new_tokens=5, do_sample=False)
    for prompt, name, got in zip(PROMPTS, names, made, strict=True):
        inputs = backbone.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
        want = references[name].generate(**inputs, max_new_tokens=5, do_sample=False, pad_token_id=0)[0]
        assert got == backbone.tokenizer.decode(want, skip_special_tokens=True)
    with (
        pytest.raises(RoutingError, match="SwitchTransformersForConditionalGeneration don't keep a batch's rows apart"),
        backbone.using(["a", "b"]),
    ):
        pass
    with backbone.using("a") as model:
        torch.testing.assert_close(logits(model, IDS), logits(references["a"], IDS), atol=2e-5, rtol=1e-5)
