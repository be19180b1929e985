"""Tiny models, tokenizers and adapters, made on the spot: random weights, real architectures."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing

from made_once import made_once

WORDS = (
    "profit sales rose fell bank the a report shares loss gain growth market price offer cash win free click "
    "patient asthma cancer with of no and acute chronic disease child mother story house dog cat ran sat big small"
).split()
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = len(SPECIAL) + len(WORDS)
FAMILIES = ("bert", "roberta", "gpt2", "llama", "t5")


def make_tokenizer(family: str) -> Any:
    """A word-level tokenizer; the encoder families wrap a text in [CLS] and [SEP], T5 ends it with [SEP]."""
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(WordLevel({word: i for i, word in enumerate([*SPECIAL, *WORDS])}, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    frames = {"t5": "$A [SEP]"} | dict.fromkeys(("bert", "roberta", "distilbert", "bart"), "[CLS] $A [SEP]")
    if family in frames:
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1" if family != "t5" else "$A [SEP] $B [SEP]"
        backend.post_processor = TemplateProcessing(
            single=frames[family], pair=pair, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", eos_token="[SEP]", model_max_length=64,
    )  # fmt: skip


def make_config(family: str, **changes: Any) -> Any:
    """A config of hidden size 32, and of two layers where ``changes`` has no other number for Llama and BERT."""
    import transformers as t

    own = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id")
    tokens = dict(zip(own, (VOCABULARY, 0, 2, 3), strict=True)) | {n: changes.pop(n) for n in own if n in changes}
    layers = changes.pop("num_hidden_layers", 2)
    sizes = {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    configs = {
        "bert": lambda: t.BertConfig(**tokens, **sizes, max_position_embeddings=64, **changes),
        "roberta": lambda: t.RobertaConfig(**tokens, **sizes, max_position_embeddings=66, **changes),
        "distilbert": lambda: t.DistilBertConfig(
            **tokens, dim=32, n_layers=2, n_heads=4, hidden_dim=64, max_position_embeddings=64, **changes
        ),
        "gpt2": lambda: t.GPT2Config(**tokens, n_embd=32, n_layer=2, n_head=4, n_positions=64, **changes),
        "llama": lambda: t.LlamaConfig(
            **tokens, **sizes, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=False, **changes
        ),
        "tied": lambda: t.LlamaConfig(
            **tokens, **sizes, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, **changes
        ),
        "gemma3": lambda: t.Gemma3TextConfig(
            **tokens, **sizes, num_key_value_heads=2, head_dim=8, max_position_embeddings=64, **changes
        ),
        "mixtral": lambda: t.MixtralConfig(
            **tokens, **sizes, num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64, **changes
        ),
        "qwen3_moe": lambda: t.Qwen3MoeConfig(
            **tokens,
            **sizes,
            num_key_value_heads=2,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=16,
            max_position_embeddings=64,
            **changes,
        ),
        "xlnet": lambda: t.XLNetConfig(
            **tokens, d_model=32, n_layer=2, n_head=4, d_inner=64, summary_type="last", **changes
        ),
        "deberta": lambda: t.DebertaV2Config(
            **tokens,
            **sizes,
            max_position_embeddings=64,
            relative_attention=True,
            pos_att_type=["p2c", "c2p"],
            position_buckets=8,
            share_att_key=True,
            **changes,
        ),
        "longformer": lambda: t.LongformerConfig(
            **tokens, **sizes, max_position_embeddings=70, attention_window=4, **changes
        ),
        "t5": lambda: t.T5Config(
            **tokens, d_model=32, d_ff=64, d_kv=8, num_layers=2, num_heads=4, decoder_start_token_id=0, **changes
        ),
        "bart": lambda: t.BartConfig(
            **tokens,
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            max_position_embeddings=64,
            decoder_start_token_id=3,
            forced_eos_token_id=None,
            **changes,
        ),
    }
    return configs[family]()


def make_base(family: str, folder: Path, seed: int = 0, **changes: Any) -> Path:
    """Save a base model and its tokenizer; returns the folder."""
    from lorary.adapters.base.loading import natural_class

    torch.manual_seed(seed)
    config = make_config(family, **changes)
    model = natural_class(config).from_config(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)  # large enough that adapters and rows differ visibly
    model.save_pretrained(folder)
    make_tokenizer(family).save_pretrained(folder)
    return folder


def task_class(task: str) -> Any:
    """transformers' class for a task."""
    import transformers

    return {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "question-answering": transformers.AutoModelForQuestionAnswering,
        "fill-mask": transformers.AutoModelForMaskedLM,
        "text-generation": transformers.AutoModelForCausalLM,
        "seq2seq": transformers.AutoModelForSeq2SeqLM,
        "feature-extraction": transformers.AutoModel,
    }[task]


PEFT_TASK = {
    "text-classification": "SEQ_CLS",
    "token-classification": "TOKEN_CLS",
    "question-answering": "QUESTION_ANS",
    "fill-mask": None,  # PEFT has no type for it
    "text-generation": "CAUSAL_LM",
    "seq2seq": "SEQ_2_SEQ_LM",
    "feature-extraction": "FEATURE_EXTRACTION",
}


def load_base(base: Path, task: str, labels: int = 3) -> Any:
    """The task's model of a base as transformers loads it, with ``labels`` where it classifies.

    Loading takes several times as long as copying what was loaded before, and a test's adapter and the model that it is
    held against each begin with one. A head that the base lacks is the same each time, and torch's random numbers go on
    as if nothing had been drawn, so that a test's own are the same in whichever order the tests run.
    """
    files = tuple((file.name, file.stat().st_mtime_ns) for file in sorted(Path(base).iterdir()))
    return copy.deepcopy(_loaded(base, files, task, labels if "classification" in task else None))


@functools.lru_cache(maxsize=16)
def _loaded(base: Path, files: tuple[Any, ...], task: str, labels: int | None) -> Any:
    kwargs = {} if labels is None else {"num_labels": labels}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return task_class(task).from_pretrained(base, **kwargs)


@made_once
def make_adapter(base: Path, folder: Path, *, task: str, seed: int = 1, labels: int = 3, **lora: Any) -> None:
    """Save a PEFT adapter with random A, B and head for ``task`` on ``base``, by PEFT alone; returns the folder."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(seed)
    model = load_base(base, task, labels)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": default_targets(model), "init_lora_weights": False} | lora
    peft_model = get_peft_model(model, LoraConfig(**{"task_type": PEFT_TASK[task]} | settings))
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    peft_model.save_pretrained(folder)


def default_targets(model: Any) -> list[str]:
    """Attention and feed-forward modules, by the names that the family gives them."""
    return {
        "bert": ["query", "value", "dense"],
        "roberta": ["query", "key", "value"],
        "distilbert": ["q_lin", "v_lin"],
        "gpt2": ["c_attn", "c_fc", "c_proj"],
        "gemma3_text": ["q_proj", "v_proj"],
        "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        "t5": ["q", "v", "wi", "wo"],
        "bart": ["q_proj", "v_proj", "fc1", "fc2"],
        "mixtral": ["q_proj", "v_proj", "o_proj"],
        "mamba2": ["in_proj"],
        "qwen3_moe": ["q_proj", "v_proj", "o_proj"],
        "xlnet": ["layer_1", "layer_2"],
        "deberta-v2": ["query_proj", "key_proj", "value_proj"],
        "longformer": ["query", "value", "query_global", "value_global"],
    }[model.config.model_type]


def peft_reference(base: Path, adapter: Path | str, *, task: str, labels: int = 3) -> Any:
    """The same checkpoint, a folder or a repository on the Hub, as PEFT loads it."""
    from peft import PeftModel

    model = load_base(base, task, labels)
    if task == "question-answering" and model.config.model_type == "llama":
        # Its class calls the body `transformer`, finds no such keys in a language model's files and draws it at random.
        model.transformer.load_state_dict(load_base(base, "feature-extraction").state_dict())
    return PeftModel.from_pretrained(model, adapter).eval()
