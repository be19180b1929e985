"""Generated text in the shapes that transformers 4's pipelines documented for each task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorary.adapters.text.asked import apart
from lorary.adapters.text.generate import PromptRow

GENERATED: Mapping[str, str] = {
    "text-generation": "generated_text",
    "summarization": "summary_text",
    "translation": "translation_text",
}
"""The tasks that generate, and the key under which each one's text is found."""

ROLES: Mapping[str, tuple[str, ...]] = {
    "text-generation": ("prompt", "messages", "text"),
    "summarization": ("text", "document"),
    "translation": ("text", "source"),
}
"""The roles under which a row of each task holds its prompt, the first that is there."""


def generated(task: str, prompt: PromptRow, texts: Sequence[str], *, continues: bool) -> Any:
    """The texts made for one prompt.

    A list of ``{"generated_text"}`` for text generation, and where ``continues``, a decoder's text follows its prompt
    (a conversation gets one more turn). For summaries and translations ``{"summary_text"}`` or
    ``{"translation_text"}``, or with ``num_return_sequences`` a list of them.
    """
    key = GENERATED[task]
    if task == "text-generation":
        return [{key: _continued(prompt, text) if continues else text} for text in texts]
    made = [{key: text} for text in texts]
    return made[0] if len(made) == 1 else made


def _continued(prompt: PromptRow, text: str) -> Any:
    given = apart(prompt).prompt
    if isinstance(given, str):
        return given + text
    return [*given, {"role": "assistant", "content": text}]
