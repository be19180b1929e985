"""What single architectures do otherwise than all others, and what loading and serving make of it."""

import pytest
import torch
import transformers as t
from peft import LoraConfig, PeftConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file

from lorary.adapters import Backbone
from lorary.adapters.base.loading import natural_class
from lorary.hub.errors import UnsupportedAdapterError, UsageError
from tiny import VOCABULARY, make_adapter, make_base, make_tokenizer

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
ROW = [9, 12, 15, 20, 8]


def save_base(config, folder, model_class=None):
    torch.manual_seed(0)
    model = (model_class or natural_class(config)).from_config(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and name.endswith("weight"):
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    make_tokenizer("bert").save_pretrained(folder)
    return folder


def save_adapter(base, folder, auto_class, seed=1, **lora):
    torch.manual_seed(seed)
    labels = {"num_labels": 3} if auto_class is t.AutoModelForSequenceClassification else {}
    peft_model = get_peft_model(auto_class.from_pretrained(base, **labels), LoraConfig(r=4, **lora))
    for parameter in peft_model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.2)
    peft_model.save_pretrained(folder)
    return folder


def causal_logits(base, folder):
    """What PEFT answers for ``ROW``: [tokens, vocabulary]."""
    plain = PeftModel.from_pretrained(t.AutoModelForCausalLM.from_pretrained(base), folder).eval()
    with torch.no_grad():
        return plain(input_ids=torch.tensor([ROW])).logits[0]


def test_a_router_that_answers_with_several_tensors_takes_no_adapter(tmp_path):
    """Phi-MoE's is a linear layer by its class. PEFT's `all-linear` reaches it, and fails when it is called."""
    config = t.PhimoeConfig(**TOKENS, **SIZES, num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64)
    base = save_base(config, tmp_path / "base")
    lora = {"task_type": TaskType.CAUSAL_LM}
    routed = save_adapter(base, tmp_path / "routed", t.AutoModelForCausalLM, target_modules="all-linear", **lora)
    fine = save_adapter(base, tmp_path / "fine", t.AutoModelForCausalLM, target_modules=["q_proj"], **lora)
    backbone = Backbone.from_pretrained(str(base))
    with pytest.raises(UnsupportedAdapterError, match=r"updates the router '.*layers\.0\.mlp\.router'"):
        backbone.load(routed)
    backbone.load(fine)
    assert torch.allclose(backbone.logits([ROW], "fine")[0], causal_logits(base, fine), atol=1e-5)


def test_an_encoder_decoder_whose_config_names_no_first_token(tmp_path):
    part = {**TOKENS, **SIZES, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    config = t.T5GemmaConfig(encoder=dict(part), decoder=dict(part), vocab_size=VOCABULARY)
    assert not hasattr(config, "decoder_start_token_id")
    base = save_base(config, tmp_path / "base")
    lora = {"target_modules": ["q_proj", "v_proj"], "task_type": TaskType.SEQ_2_SEQ_LM}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForSeq2SeqLM, **lora)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "a")
    plain = PeftModel.from_pretrained(t.AutoModelForSeq2SeqLM.from_pretrained(base), folder).eval()
    inputs = backbone.tokenizer("profit rose the bank", return_tensors="pt", return_token_type_ids=False)
    made = plain.generate(**inputs, max_new_tokens=6, do_sample=False)
    expected = backbone.tokenizer.decode(made[0], skip_special_tokens=True)
    assert backbone.generate("profit rose the bank", "a", max_new_tokens=6, do_sample=False) == expected


def test_a_classifier_that_reads_another_token_where_a_row_is_padded(tmp_path):
    """T5Gemma's: one further, which is there only beside a longer row. transformers' pipeline takes row by row."""
    part = {**TOKENS, **SIZES, "num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 8}
    config = t.T5GemmaConfig(encoder=dict(part), decoder=dict(part), **TOKENS)
    base = save_base(config, tmp_path / "base")
    lora = {"target_modules": ["q_proj", "v_proj"], "task_type": TaskType.SEQ_CLS}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForSequenceClassification, **lora)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "a")
    model = t.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    plain = PeftModel.from_pretrained(model, folder).eval()
    texts = ["profit rose", "the cat ran and the dog sat", "small story"]
    scores = [[row["score"] for row in rows] for rows in backbone.predict(texts, "a", top_k=None)]
    for text, found in zip(texts, scores, strict=True):
        inputs = backbone.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        with torch.no_grad():
            expected = plain(**inputs).logits[0].softmax(-1).sort(descending=True).values
        assert torch.allclose(torch.tensor(found), expected, atol=1e-5)


def test_a_head_that_counts_separators(tmp_path):
    """Longformer's question answering finds the question by them, and demands three of them."""
    base = make_base("longformer", tmp_path / "base", sep_token_id=3)
    backbone = Backbone.from_pretrained(str(base))
    assert backbone.load(make_adapter(base, tmp_path / "a", task="question-answering")).task == "question-answering"


def test_a_head_whose_last_layer_has_another_name(tmp_path):
    config = t.FunnelConfig(
        architectures=["FunnelModel"],
        **TOKENS,
        block_sizes=[1, 1],
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=64,
        num_decoder_layers=1,
    )
    base = save_base(config, tmp_path / "base")
    lora = {"target_modules": ["q_head", "v_head"], "task_type": TaskType.SEQ_CLS}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForSequenceClassification, **lora)
    backbone = Backbone.from_pretrained(str(base))
    assert backbone.load(folder, "a").labels == ("LABEL_0", "LABEL_1", "LABEL_2")


def test_a_head_on_a_part_that_the_body_is_served_without(tmp_path):
    base = save_base(t.NomicBertConfig(**TOKENS, **SIZES, max_position_embeddings=64), tmp_path / "base")
    lora = {"target_modules": ["q_proj"], "task_type": TaskType.SEQ_CLS, "modules_to_save": ["pooler", "classifier"]}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForSequenceClassification, **lora)
    with pytest.raises(
        UnsupportedAdapterError, match="NomicBertForSequenceClassification reads the pooler of its body"
    ):
        Backbone.from_pretrained(str(base)).load(folder)


@pytest.mark.parametrize(
    ("config", "head"),
    [
        (t.BioGptConfig(**TOKENS, **SIZES, max_position_embeddings=64), "output_projection"),
        (t.XLNetConfig(**TOKENS, d_model=32, n_layer=2, n_head=4, d_inner=64), "lm_loss"),
    ],
)
def test_tied_output_layers_of_other_names_arent_quantized(tmp_path, config, head):
    backbone = Backbone.from_pretrained(str(save_base(config, tmp_path)), quantization="int8")
    assert type(backbone.model.get_submodule(head)) is torch.nn.Linear


def test_a_model_that_cant_be_quantized_says_so(tmp_path):
    config = t.DeepseekV3Config(
        **TOKENS, **SIZES, n_routed_experts=4, moe_intermediate_size=32, n_group=2, topk_group=1, n_shared_experts=1,
        num_key_value_heads=4, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=8, qk_rope_head_dim=8,
        qk_nope_head_dim=8, v_head_dim=8, num_experts_per_tok=2,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"DeepseekV3ForCausalLM doesn't run on int8.*quantization='none'"):
        Backbone.from_pretrained(str(save_base(config, tmp_path)), quantization="int8")


def test_lora_in_a_head_layer_of_the_base(tmp_path):
    """PEFT's `all-linear` reaches ModernBERT's dense layer, which it doesn't save."""
    config = t.ModernBertConfig(
        **TOKENS, **SIZES, max_position_embeddings=64, local_attention=16, cls_token_id=2, sep_token_id=3
    )
    base = save_base(config, tmp_path / "base", t.AutoModelForMaskedLM)
    lora = {"target_modules": "all-linear", "task_type": TaskType.SEQ_CLS, "use_dora": True}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForSequenceClassification, **lora)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "a")
    plain = t.AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    with torch.no_grad():
        expected = PeftModel.from_pretrained(plain, folder).eval()(input_ids=torch.tensor([ROW])).logits[0]
    assert torch.allclose(backbone.logits([ROW], "a")[0], expected, atol=1e-5)
    saved = load_file(folder / "adapter_model.safetensors")
    held = backbone.state("a")
    assert held.keys() == saved.keys()
    assert not [key for key in saved if not torch.allclose(held[key], saved[key], atol=1e-3)]
    backbone.merge("a", tmp_path / "merged")


@pytest.mark.parametrize("opened", ["files", "memory"])
def test_a_model_that_reads_images_too_is_served_texts(tmp_path, opened):
    vision = t.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    text = t.LlamaConfig(**TOKENS, **SIZES, max_position_embeddings=64)
    config = t.LlavaConfig(text_config=text, vision_config=vision, image_token_index=5)
    base = save_base(config, tmp_path / "base", t.AutoModelForImageTextToText)
    lora = {"target_modules": r".*language_model.*\.(q_proj|v_proj)", "task_type": TaskType.CAUSAL_LM}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForImageTextToText, **lora)
    plain = PeftModel.from_pretrained(t.AutoModelForImageTextToText.from_pretrained(base), folder).eval()
    if opened == "files":
        backbone = Backbone.from_pretrained(str(base))
    else:
        backbone = Backbone.from_model(t.AutoModelForImageTextToText.from_pretrained(base), make_tokenizer("llama"))
    backbone.load(folder, "a")
    with torch.no_grad():
        assert torch.allclose(backbone.logits([ROW], "a")[0], plain(input_ids=torch.tensor([ROW])).logits[0], atol=1e-5)
        ids = backbone._inference.prompt_ids("profit rose the bank", None)
        made = plain.generate(input_ids=torch.tensor([ids]), max_new_tokens=5, do_sample=False)[0, len(ids) :]
    texts = backbone.generate(["profit rose the bank", "cash"], ["a", None], max_new_tokens=5, do_sample=False)
    assert texts[0] == backbone.tokenizer.decode(made, skip_special_tokens=True)
    backbone.merge("a", tmp_path / "merged")


def test_a_weight_that_the_model_reads_by_itself(tmp_path):
    """Mamba never calls its `dt_proj`, so an adapter does nothing there, in PEFT's hands too."""
    base = save_base(t.MambaConfig(**TOKENS, hidden_size=32, num_hidden_layers=2, state_size=4), tmp_path / "base")
    lora = {"target_modules": ["x_proj", "dt_proj"], "task_type": TaskType.CAUSAL_LM}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForCausalLM, **lora)
    backbone = Backbone.from_pretrained(str(base))
    assert any("'dt_proj' has no effect" in note for note in backbone.load(folder, "a").notes)
    assert torch.allclose(backbone.logits([ROW], "a")[0], causal_logits(base, folder), atol=1e-5)
    backbone.merge("a", tmp_path / "merged")


def test_a_base_that_reads_characters_is_refused(tmp_path):
    """CANINE hashes them; asked for its embedding of tokens it raised NotImplementedError."""
    config = t.CanineConfig(**SIZES, num_hash_buckets=64, max_position_embeddings=64, downsampling_rate=2)
    base = save_base(config, tmp_path / "base", t.AutoModel)
    with pytest.raises(UsageError, match="CanineModel has no embedding of token ids"):
        Backbone.from_pretrained(str(base))
    with pytest.raises(UsageError, match="open a base that reads tokens"):
        Backbone.from_model(t.AutoModel.from_pretrained(base), None)


def test_a_model_that_pools_its_tokens(tmp_path):
    """Funnel has none left of four, which were what its layers were watched with."""
    sizes = {"d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64, "block_sizes": [1, 1, 1]}
    base = save_base(
        t.FunnelConfig(vocab_size=VOCABULARY, architectures=["FunnelModel"], **sizes), tmp_path / "base", t.AutoModel
    )
    lora = {"target_modules": "all-linear", "task_type": TaskType.FEATURE_EXTRACTION}
    folder = save_adapter(base, tmp_path / "a", t.AutoModel, **lora)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "a")
    plain = PeftModel.from_pretrained(t.AutoModel.from_pretrained(base), folder).eval()
    with torch.no_grad():
        expected = plain(input_ids=torch.tensor([ROW])).last_hidden_state[0]
    assert torch.allclose(backbone.logits([ROW], "a")[0], expected, atol=1e-5)


def test_parameters_that_peft_names_by_itself(tmp_path):
    """For `all-linear` it writes those of every mixture of experts, and Hunyuan's router has no `gate.weight`."""
    config = t.HunYuanMoEV1Config(
        **TOKENS, **SIZES, num_key_value_heads=2, head_dim=8, num_experts=4, moe_topk=[2, 2], max_position_embeddings=64
    )
    base = save_base(config, tmp_path / "base")
    lora = {"target_modules": "all-linear", "task_type": TaskType.CAUSAL_LM}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForCausalLM, **lora)
    assert "gate.weight" in PeftConfig.from_pretrained(folder).target_parameters
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "a")
    assert torch.allclose(backbone.logits([ROW], "a")[0], causal_logits(base, folder), atol=1e-5)


def test_layers_with_values_of_their_own(tmp_path):
    """Gemma 4's heads are wider in some layers, and its config raises where it is asked for one width."""
    sizes = {"num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16, "hidden_size_per_layer_input": 8}
    config = t.Gemma4TextConfig(**TOKENS, **SIZES, **sizes, vocab_size_per_layer_input=VOCABULARY)
    base = save_base(config, tmp_path / "base")
    lora = {"target_modules": "all-linear", "task_type": TaskType.CAUSAL_LM}
    folder = save_adapter(base, tmp_path / "a", t.AutoModelForCausalLM, **lora)
    backbone = Backbone.from_pretrained(str(base))
    backbone.load(folder, "a")
    assert torch.allclose(backbone.logits([ROW], "a")[0], causal_logits(base, folder), atol=1e-5)
