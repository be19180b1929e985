"""Generating texts with a model in training, as the loader will with the saved adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorary.adapters.running.inference import padding_token
from lorary.adapters.text.generate import decode_new, pad_prompts
from lorary.adapters.text.settings import end_tokens
from lorary.training.precision import answering


def write_texts(
    model: Any, tokenizer: Any, prompts: Sequence[Sequence[int]], settings: Mapping[str, Any], batch_size: int
) -> list[str]:
    """The new text of each prompt.

    Args:
        model: a language model, with or without PEFT's layers.
        prompts: token ids.
        settings: arguments of transformers' ``generate``.
    """
    device, encoder_decoder = next(model.parameters()).device, bool(model.config.is_encoder_decoder)
    pad = padding_token(model.config, tokenizer)
    ends = end_tokens(settings, model.generation_config)
    given = {**settings, "pad_token_id": ends[0] if ends else pad, "return_dict_in_generate": False}
    order = sorted(range(len(prompts)), key=lambda index: -len(prompts[index]))
    texts: dict[int, str] = {}
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        batch = pad_prompts([prompts[place] for place in places], encoder_decoder=encoder_decoder, pad=pad)
        inputs = {name: tensor.to(device) for name, tensor in batch.items()}
        with answering(model):
            made = model.generate(**inputs, **given)
        prompt = 0 if encoder_decoder else inputs["input_ids"].shape[1]
        new = decode_new(made, prompt, [tokenizer] * len(made), ends)
        texts |= zip(places, new, strict=True)
    return [texts[place] for place in range(len(prompts))]


def spread(rows: int, most: int) -> list[int]:
    """The places of at most ``most`` of so many rows, evenly spread."""
    count = min(rows, most)
    return [place * rows // count for place in range(count)]
