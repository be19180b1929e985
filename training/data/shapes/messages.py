"""Chat messages in the shapes that people's files have, read as one: ``{role, content}``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lorary.training.data.shapes.written import from_text
from lorary.training.recipe.raw import shown

CHAT_ROLES = ("system", "user", "assistant", "tool")

# ShareGPT's names, as FastChat, LLaMA-Factory and axolotl read them.
_SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user", "user": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "assistant": "assistant", "function_call": "assistant", "system": "system", "tool": "tool",
    "observation": "tool", "function_response": "tool",
}  # fmt: skip

_SPEAKER = re.compile(r"""["'](?:role|from)["']\s*:""")
"""What a chat has in it, as JSON and in Python's words; most texts that only begin like one don't."""

_SPEAKERS = frozenset({*CHAT_ROLES, *_SHAREGPT_ROLES, "developer"})


def as_messages(value: Any) -> Any:
    """A list of messages with ShareGPT's ``{from, value}`` as ``{role, content}``, OpenAI's ``developer`` as
    ``system``, text parts joined, and without the empty fields that table formats add; of a single message, a list of
    it. What isn't a message stays as it is, for the check to name."""
    if is_message(value):
        value = [value]
    return [_as_message(message) for message in value] if isinstance(value, list) else value


def as_chat(value: Any) -> Any:
    """The messages of a whole chat, which CSV files have as text: as JSON, or as data frames write lists."""
    found = from_text(value)
    return as_messages(found if isinstance(found, (list, dict)) else value)


def as_written_chat(text: str) -> Any:
    """The messages that a text holds and nothing else; None of any other text, even where it is a list or a table."""
    if text.lstrip()[:1] not in ("[", "{") or not _SPEAKER.search(text):
        return None
    found = from_text(text)
    messages = [found] if isinstance(found, dict) else found
    whole = isinstance(messages, list) and bool(messages) and all(map(_is_whole, messages))
    return as_messages(messages) if whole else None


def _is_whole(message: Any) -> bool:
    if not isinstance(message, Mapping):
        return False
    said = bool(message.keys() & {"content", "value", "tool_calls"})
    return said and message.get("role", message.get("from")) in _SPEAKERS


def is_message(value: Any) -> bool:
    """Does a value look like a single message?"""
    return isinstance(value, Mapping) and bool(value.keys() & {"role", "from"})


def _as_message(message: Any) -> Any:
    if not isinstance(message, Mapping):
        return message
    found = {key: value for key, value in message.items() if value is not None}
    if "from" in found and "value" in found and "role" not in found:
        speaker = found.pop("from")
        found = {"role": _SHAREGPT_ROLES.get(str(speaker), speaker), "content": found.pop("value"), **found}
    if found.get("role") == "developer":  # OpenAI's newer name, which hardly a template knows
        found["role"] = "system"
    parts = found.get("content")
    if isinstance(parts, list) and all(isinstance(part, Mapping) and part.get("type") == "text" for part in parts):
        found["content"] = "".join(str(part.get("text", "")) for part in parts)
    if found.get("tool_calls"):
        found.setdefault("content", "")
    return found


def messages_problem(value: Any) -> str | None:
    """What is wrong with a list of messages, the first thing; None where nothing is."""
    if not isinstance(value, list) or not value:
        return f"expected a list of messages, found {shown(value)}"
    for place, message in enumerate(value, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return f"message {place}: expected {{role, content}} with a text as content, {_instead(message)}"
        if message.get("role") not in CHAT_ROLES:
            return f"message {place}: role {shown(message.get('role'))}, expected one of {', '.join(CHAT_ROLES)}"
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            return f"message {place}: the assistant's content is empty"
        if message.get("weight", 1) not in (0, 1):
            return f"message {place}: weight {shown(message['weight'])}, expected 1, or 0 for a turn that isn't learned"
        if not isinstance(message.get("train", True), bool):
            return f"message {place}: train {shown(message['train'])}, expected true, or false for a turn that isn't"
    return None


def is_learned(message: Mapping[str, Any]) -> bool:
    """Is it a turn of the assistant, and not marked as one to leave out, as OpenAI's and axolotl's files mark them?"""
    return message["role"] == "assistant" and message.get("weight", 1) == 1 and message.get("train", True)


def _instead(message: Any) -> str:
    """What a message is that has no text as content; of parts the first that isn't a text."""
    if not isinstance(message, dict):
        return f"found {shown(message)}"
    parts = message.get("content")
    kinds = [part.get("type") for part in parts if isinstance(part, dict)] if isinstance(parts, list) else []
    other = next((kind for kind in kinds if kind != "text"), None)
    return f"found a part {shown(other)}" if other else f"found {shown(parts)} as content"


def chat_problem(value: Any) -> str | None:
    """What is wrong with a whole chat: the assistant has to say something in it that is learned."""
    problem = messages_problem(value)
    if problem is None and not any(is_learned(message) for message in value):
        marked = any(message["role"] == "assistant" for message in value)
        what = "each message of the assistant is marked as not learned" if marked else "no message of the assistant"
        return f"{what}, so there is nothing to learn"
    return problem


def reply_problem(value: Any) -> str | None:
    """What is wrong with messages that answer a prompt: the last one has to be the assistant's."""
    problem = messages_problem(value)
    if problem is None and value[-1]["role"] != "assistant":
        return f"the last message is the {value[-1]['role']}'s, expected the assistant's"
    return problem


def same_kind(values: Mapping[str, Any], roles: Sequence[str]) -> str | None:
    """What is wrong where some of a row's values are texts and others messages."""
    kinds = {role: "messages" if isinstance(values[role], list) else "text" for role in roles if role in values}
    if len(set(kinds.values())) > 1:
        return (
            f"expected texts or messages throughout, found {', '.join(f'{r} as {kind}' for r, kind in kinds.items())}"
        )
    return None
