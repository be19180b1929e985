"""What a chat template is told by name beside the conversation, such as ``enable_thinking``.

transformers' ``apply_chat_template`` hands such arguments on to the template; vLLM and TRL call them so too.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from keyword import iskeyword
from typing import Any

from lorary.hub.jsontext import load_json

TAKEN = frozenset({
    "add_generation_prompt", "chat_template", "continue_final_message", "conversation", "conversations", "documents",
    "max_length", "messages", "padding", "return_assistant_tokens_mask", "return_dict", "return_tensors",
    "sanitize_control_tokens", "self", "tokenize", "tokenizer_kwargs", "tools", "truncation",
    "additional_special_tokens", "bos_token", "cls_token", "eos_token", "mask_token", "pad_token", "sep_token",
    "unk_token",
    "cycler", "dict", "false", "joiner", "lipsum", "namespace", "none", "raise_exception", "range", "strftime_now",
    "true",
})  # fmt: skip
"""What ``apply_chat_template`` takes itself, or tells the template of its own accord, and names that Jinja has.

A merged model's template tells itself what isn't defined there, and these always are.
"""


def template_kwargs_problem(kwargs: Any) -> str | None:
    """What is wrong with a template's arguments, the first thing; None where nothing is."""
    if not isinstance(kwargs, Mapping):
        return f"expected a table of names and values, such as {{enable_thinking: false}}, found {_shown(kwargs)}"
    for name, value in kwargs.items():
        # Python takes other scripts' letters for those that they look like, Jinja doesn't.
        if not isinstance(name, str) or not name.isascii() or not name.isidentifier() or iskeyword(name):
            return f"expected names of variables, such as enable_thinking, found {_shown(name)}"
        if name in TAKEN:
            return f"{name!r} isn't the template's to be told; leave it out"
        if not _is_kept(value):
            return (
                f"{name}: expected a value that JSON has (a text, such as a date in quotes, a number, true or false, "
                f"or lists and tables of these, whose names are texts), found {_shown(value)}"
            )
    return None


def _is_kept(value: Any) -> bool:
    """Is a value the same again once it was written into a manifest and read there?"""
    below = {"provenance": {"recipe": {"prompt": {"chat_template_kwargs": [value]}}}}  # the deepest that it stands
    try:
        return bool(load_json(json.dumps(below, allow_nan=False)) == below)
    except (TypeError, ValueError, RecursionError):
        return False


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):  # more digits or levels than Python writes
        return f"what is too large to be shown ({type(value).__name__})"
