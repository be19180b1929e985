"""A tiny Llama that writes characters, one byte a token: what a text holds can be told of its tokens."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SIGNS = sorted(pre_tokenizers.ByteLevel.alphabet())
READABLE = {"suppress_tokens": [token for token, sign in enumerate(SIGNS) if not "!" <= sign <= "~"]}
_SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def character_tokenizer(**special: str) -> PreTrainedTokenizerFast:
    """Its tokenizer, with special tokens such as ``eos_token`` after the characters."""
    backend = Tokenizer(models.BPE({sign: token for token, sign in enumerate(SIGNS)}, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def make_character_base(folder: Path, positions: int = 128, rows: int = 256) -> Path:
    """Save the base, with so many positions and ``rows`` of the output layer; no token ends its texts."""
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=rows, max_position_embeddings=positions, eos_token_id=None, **_SIZES)
    model = LlamaForCausalLM(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(folder)
    character_tokenizer().save_pretrained(folder)
    return folder
