"""Text generation with one adapter per row: prompts put the way each adapter was trained, one batch, one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lorary.adapters.adapter import Adapter
from lorary.hub.errors import UsageError
from lorary.hub.manifest import Prompt

PromptRow = str | Sequence[Mapping[str, str]]


def render(prompt: PromptRow, adapter: Adapter | None, tokenizer: Any) -> tuple[str, bool]:
    """The text before the model for one prompt, and whether special tokens still have to be added to it.

    A chat template writes its own beginning-of-sequence token; adding another would double it.

    Raises:
        UsageError: a conversation was given and neither the adapter nor the tokenizer has a chat template.
    """
    settings = adapter.manifest.prompt if adapter and adapter.manifest and adapter.manifest.prompt else Prompt()
    if isinstance(prompt, str) and settings.format != "chat":
        return (settings.template.replace("{prompt}", prompt) if settings.template else prompt), True
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    template = settings.chat_template or getattr(tokenizer, "chat_template", None)
    if template is None:
        raise UsageError(
            "a conversation was given, but neither the adapter nor the tokenizer has a chat template; pass a text"
        )
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    return text, False


def encode_prompts(
    prompts: Sequence[PromptRow], adapters: Sequence[Adapter | None], tokenizer: Any, *, encoder_decoder: bool
) -> dict[str, torch.Tensor]:
    """Token ids and mask, [rows, tokens] each; padded on the left, so that every row ends where it goes on."""
    rows = []
    for prompt, adapter in zip(prompts, adapters, strict=True):
        text, add_special = render(prompt, adapter, tokenizer)
        ids = tokenizer(text, add_special_tokens=add_special)["input_ids"]
        if not ids:
            raise UsageError(
                "an empty prompt: this tokenizer adds no token of its own, so there is nothing to go on from"
            )
        rows.append(ids)
    longest = max(map(len, rows))
    pad = pad_id(tokenizer)
    ids = torch.full((len(rows), longest), pad)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        part = slice(0, len(row)) if encoder_decoder else slice(longest - len(row), longest)
        ids[index, part] = torch.tensor(row)
        mask[index, part] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pad_id(tokenizer: Any) -> int:
    """The padding token, or the end-of-sequence token where there is none (masked either way)."""
    for token in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    return 0


def decode_new(sequences: torch.Tensor, prompt_tokens: int, tokenizer: Any) -> list[str]:
    """The texts after the prompts, special tokens left out."""
    return [str(text) for text in tokenizer.batch_decode(sequences[:, prompt_tokens:], skip_special_tokens=True)]
