"""Tools: what a model may call in its answer, told to it by the chat template beside the conversation.

They are what transformers' ``apply_chat_template(tools=...)`` takes: JSON schemas of functions, or functions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from lorary.adapters.arguments import shown


def from_json_text(value: Any) -> Any:
    """What is written as JSON text, as data sets have tools, as what it says; an empty text as None."""
    if not isinstance(value, str):
        return value
    with suppress(ValueError, RecursionError):
        return json.loads(value) if value.strip() else None
    return value


def tools_problem(tools: Any, *, functions: bool = False) -> str | None:
    """What is wrong with a list of tools, the first thing; None where nothing is. ``functions``: they may be some."""
    if not isinstance(tools, (list, tuple)):
        return f"expected a list of JSON schemas of functions, or one as JSON text, found {shown(tools)}"
    for place, tool in enumerate(tools, start=1):
        if functions and callable(tool):
            continue
        if not isinstance(tool, Mapping):
            return f"tool {place}: expected a JSON schema of a function, found {shown(tool)}"
        if not _has_name(tool):
            return f"tool {place}: has no name (tool['function']['name']), found {shown(dict(tool))}"
    return None


def _has_name(tool: Mapping[str, Any]) -> bool:
    """OpenAI's form has the function in a field of its own; some files, and some templates, have it bare."""
    function = tool.get("function", tool)
    name = function.get("name") if isinstance(function, Mapping) else None
    return isinstance(name, str) and bool(name.strip())


def with_calls(messages: Sequence[Any], read: Callable[[Any], Any]) -> list[Any]:
    """Messages with the arguments of their tool calls as ``read`` gives them.

    A call without words has an empty content: many templates fail where there is none, and all write the same.
    """
    return [
        {**message, "content": message.get("content") or "", "tool_calls": [_call(call, read) for call in calls]}
        if isinstance(message, Mapping) and isinstance(calls := message.get("tool_calls"), (list, tuple))
        else message
        for message in messages
    ]


def _call(call: Any, read: Callable[[Any], Any]) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "arguments" not in function:
        return call
    return {**call, "function": {**function, "arguments": read(function["arguments"])}}


def as_table(arguments: Any) -> Any:
    """OpenAI has arguments as JSON text, which most templates would write as a text in quotes."""
    with suppress(ValueError, TypeError, RecursionError):
        table = json.loads(arguments)
        return table if isinstance(table, dict) else arguments
    return arguments


def as_text(arguments: Any) -> str:
    """What a template gets that joins them to a text of its own."""
    table = as_table(arguments)
    return table if isinstance(table, str) else json.dumps(table, ensure_ascii=False)
