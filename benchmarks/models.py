"""What the benchmarks make themselves: Llama shapes with random weights, a word-level tokenizer, PEFT adapters."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SHAPES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "10M": {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 16, "num_attention_heads": 8},
    "30M": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8},
    "1B": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
}
VOCABULARY = 4096
LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]

_SYLLABLES = [a + b for a in "bdfgklmnprst" for b in ("a", "e", "i", "o", "u")]


def words(count: int) -> list[str]:
    """Made-up words, each of two or three syllables, always the same."""
    size = len(_SYLLABLES)
    return [
        _SYLLABLES[i % size]
        + _SYLLABLES[i // size % size]
        + ("" if i < size * size else _SYLLABLES[i // size**2 % size])
        for i in range(count)
    ]


def make_base(folder: Path, shape: str, *, vocabulary: int = VOCABULARY, dtype: torch.dtype = torch.float32) -> Path:
    """Save a random Llama of one of :data:`SHAPES` and its tokenizer; returns the folder."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<pad>", "<unk>", "<s>", "</s>"]
    backend = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*special, *words(vocabulary - 4)])}, unk_token="<unk>")
    )
    backend.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.model_max_length = 2048
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary, max_position_embeddings=2048, pad_token_id=0, bos_token_id=2, eos_token_id=3,
        tie_word_embeddings=True, **SHAPES[shape],
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapters(
    base: Path, folder: Path, count: int, *, rank: int = 16, targets: Sequence[str] = LINEARS, seed: int = 0
) -> list[Path]:
    """Save ``count`` adapters on ``targets`` with random A and B, by PEFT; returns their folders.

    Their seeds count up from ``seed``: those of one seed are one adapter to a backbone, wherever they lie.
    """
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file

    model = _load(base)
    config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(targets), task_type="CAUSAL_LM")
    first = folder / "adapter-0"
    get_peft_model(model, config).save_pretrained(first)
    shapes = load_file(first / "adapter_model.safetensors")
    folders = []
    for index in range(count):
        generator = torch.Generator().manual_seed(seed + index)
        own = folder / f"adapter-{index}"
        own.mkdir(exist_ok=True)
        (own / "adapter_config.json").write_bytes((first / "adapter_config.json").read_bytes())
        tensors = {key: torch.randn(value.shape, generator=generator) * 0.02 for key, value in shapes.items()}
        save_file(tensors, own / "adapter_model.safetensors")
        folders.append(own)
    return folders


def _load(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(base)
