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
        prefix = adapter.manifest.preprocessing.prefix if adapter and adapter.manifest else ""
        return prefix + (settings.template.replace("{prompt}", prompt) if settings.template else prompt), True
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    template = settings.chat_template or getattr(tokenizer, "chat_template", None)
    if template is None:
        raise UsageError(
            "a conversation was given, but neither the adapter nor the tokenizer has a chat template; pass a text"
        )
    text = tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    return text, False


def prompt_of(row: Any, adapter: Adapter | None, roles: Sequence[str]) -> PromptRow:
    """The prompt of a row: a text, a conversation, or a mapping by role or by the adapter's own column names.

    Raises:
        UsageError: it is none of these.
    """
    if isinstance(row, Mapping):
        columns = adapter.manifest.preprocessing.columns if adapter and adapter.manifest else {}
        found = [row[name] for role in roles for name in (columns.get(role, role), role) if name in row]
        if not found:
            raise UsageError(
                f"a row has no prompt: expected one of {', '.join(roles)}, found {', '.join(map(str, row))}"
            )
        row = found[0]
    if isinstance(row, str) or (isinstance(row, Sequence) and all(isinstance(turn, Mapping) for turn in row)):
        return row
    raise UsageError(f"expected a prompt (a text, or a list of {{role, content}}), found {type(row).__name__}")


def encode_prompts(
    prompts: Sequence[PromptRow], adapters: Sequence[Adapter | None], tokenizer: Any, *, encoder_decoder: bool, pad: int
) -> dict[str, torch.Tensor]:
    """Token ids and mask, [rows, tokens] each.

    A decoder's rows are padded on the left, so that each ends where it goes on; an encoder's on the right, and cut to
    the length that their adapter was trained with.
    """
    rows = []
    for prompt, adapter in zip(prompts, adapters, strict=True):
        text, add_special = render(prompt, adapter, tokenizer)
        settings: dict[str, Any] = {}
        preprocessing = adapter.manifest.preprocessing if adapter and adapter.manifest else None
        if encoder_decoder and preprocessing and preprocessing.max_length:
            settings = {"truncation": True, "max_length": preprocessing.max_length}
        ids = tokenizer(text, add_special_tokens=add_special, **settings)["input_ids"]
        if not ids:
            raise UsageError(
                "an empty prompt: this tokenizer adds no token of its own, so there is nothing to go on from"
            )
        rows.append(ids)
    longest = max(map(len, rows))
    batch = torch.full((len(rows), longest), pad)
    mask = torch.zeros((len(rows), longest), dtype=torch.long)
    for index, row in enumerate(rows):
        part = slice(0, len(row)) if encoder_decoder else slice(longest - len(row), longest)
        batch[index, part] = torch.tensor(row)
        mask[index, part] = 1
    return {"input_ids": batch, "attention_mask": mask}


def decode_new(sequences: torch.Tensor, prompt_tokens: int, tokenizer: Any) -> list[str]:
    """The texts after the prompts, special tokens left out."""
    return [str(text) for text in tokenizer.batch_decode(sequences[:, prompt_tokens:], skip_special_tokens=True)]
