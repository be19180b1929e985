"""An untrained model of the recipe's sizes."""

from __future__ import annotations

import math
from typing import Any

from lorary.training.pretraining.recipe import PretrainRecipe


def make_model(recipe: PretrainRecipe, tokenizer: Any) -> Any:
    """transformers' own model with random weights, float32 on the CPU; the recipe's seed is set before it is made.

    Embeddings are tied to the output layer: of a small model they would otherwise be the larger part, twice. A T5
    has the gated feed-forward layers of version 1.1, and its first version's tied embeddings, with the scale that goes
    with them: transformers ties them in either case.
    """
    from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM, set_seed

    sizes = recipe.model
    # The gated layer has three matrices in place of two: two thirds of four times the width (Shazeer 2020).
    gated = sizes.intermediate_size or -(-8 * sizes.hidden_size // 3 // 32) * 32
    if recipe.architecture == "t5":
        set_seed(recipe.training.seed)
        return _t5(recipe, tokenizer, gated)
    common = {
        "vocab_size": len(tokenizer),
        "hidden_size": sizes.hidden_size,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "max_position_embeddings": sizes.context,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": True,
        # The usual 0.02 is BERT-base's; the smaller the width, the larger the weights have to be to say anything.
        "initializer_range": 0.02 * math.sqrt(768 / sizes.hidden_size),
    }
    set_seed(recipe.training.seed)
    if recipe.architecture == "llama":
        config = LlamaConfig(
            **common,
            intermediate_size=gated,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        return LlamaForCausalLM(config)
    return BertForMaskedLM(BertConfig(**common, intermediate_size=sizes.intermediate_size or 4 * sizes.hidden_size))


def _t5(recipe: PretrainRecipe, tokenizer: Any, gated: int) -> Any:
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = recipe.model
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=sizes.hidden_size,
        d_kv=sizes.hidden_size // sizes.heads,
        d_ff=gated,
        num_layers=sizes.layers,
        num_decoder_layers=sizes.layers,
        num_heads=sizes.heads,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
    )
    return T5ForConditionalGeneration(config)
