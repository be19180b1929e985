"""What a chat template is told by name beside the conversation, such as ``enable_thinking``.

transformers' ``apply_chat_template`` hands such arguments on to the template; vLLM and TRL call them so too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

TAKEN = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors",
    "sanitize_control_tokens", "tokenize", "tokenizer_kwargs", "tools", "truncation",
})  # fmt: skip
"""What ``apply_chat_template`` takes itself, or tells the template of its own accord."""


def template_kwargs_problem(kwargs: Any) -> str | None:
    """What is wrong with a template's arguments, the first thing; None where nothing is."""
    if not isinstance(kwargs, Mapping):
        return f"expected a table of names and values, such as {{enable_thinking: false}}, found {kwargs!r:.80}"
    for name, value in kwargs.items():
        if not isinstance(name, str) or not name.isidentifier() or iskeyword(name):
            return f"expected names of variables, such as enable_thinking, found {name!r:.80}"
        if name in TAKEN:
            return f"{name!r} isn't the template's to be told; leave it out"
        try:
            json.dumps(value, allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            return f"{name}: expected a value that JSON has (a text, a number, true or false), found {value!r:.80}"
    return None
