"""What a response goes on from: a text, or items, read into the turns of a chat.

What an assistant said takes several items (its thoughts, its words, its calls) and is one turn in chat templates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lorary.adapters.arguments import shown

Turn = dict[str, Any]
_ROLES = ("user", "assistant", "system", "developer")
_OF_ALL = frozenset({"type", "id", "status"})  # which item it is and how it came about, which no template reads
_OF_PARTS = frozenset({"type", "text", "annotations", "logprobs"})
_TEXTS = ("input_text", "output_text", "text")


def read_input(given: Any) -> list[Turn]:
    """The turns of ``input``.

    Raises:
        ValueError: it is neither a text nor items that are read here; says which one, and what is wrong.
    """
    if isinstance(given, str) and given:
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise ValueError(f"expected a text, or a list of items, neither of them empty, found {shown(given)}")
    turns: list[Turn] = []
    called = set[str]()
    for place, item in enumerate(given):
        try:
            _add(item, turns, called)
        except ValueError as error:
            raise ValueError(f"item {place}: {error}") from error
    return turns


def _add(item: Any, turns: list[Turn], called: set[str]) -> None:
    if not isinstance(item, dict):
        raise ValueError(f"expected an object, found {shown(item)}")
    kind = item.get("type", "message")
    reader = _READERS.get(kind) if isinstance(kind, str) else None
    if reader is None:
        raise ValueError(f"the type {shown(kind)} isn't served here; expected one of {', '.join(_READERS)}")
    reader(item, turns, called)


def _message(item: Mapping[str, Any], turns: list[Turn], _called: set[str]) -> None:
    _demand_known(item, {"role", "content"})
    role = item.get("role")
    if role not in _ROLES:
        raise ValueError(f"role: expected one of {', '.join(_ROLES)}, found {shown(role)}")
    content = _text(item.get("content"), f"a message of {role}")
    if role != "assistant":
        turns.append({"role": role, "content": content})
        return
    turn = _open(turns)
    if turn.get("content") or "tool_calls" in turn:  # another one
        turns.append({"role": role, "content": content})
    else:
        turn["content"] = content


def _function_call(item: Mapping[str, Any], turns: list[Turn], called: set[str]) -> None:
    _demand_known(item, {"call_id", "name", "arguments"})
    call_id, name, arguments = (_demand_text(item, field) for field in ("call_id", "name", "arguments"))
    called.add(call_id)
    call = {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
    _open(turns).setdefault("tool_calls", []).append(call)


def _function_call_output(item: Mapping[str, Any], turns: list[Turn], called: set[str]) -> None:
    _demand_known(item, {"call_id", "output"})
    call_id = _demand_text(item, "call_id")
    if call_id not in called:
        raise ValueError(f"no function_call before it has the call_id {shown(call_id)}")
    output = _text(item.get("output"), "a function_call_output")
    turns.append({"role": "tool", "tool_call_id": call_id, "content": output})


def _reasoning(item: Mapping[str, Any], turns: list[Turn], _called: set[str]) -> None:
    _demand_known(item, {"summary", "content", "encrypted_content"})
    thoughts = _joined(item.get("content"), "reasoning_text") or _joined(item.get("summary"), "summary_text")
    if item.get("encrypted_content") is not None and not thoughts:
        raise ValueError("encrypted_content: nobody here can read it; leave the item out")
    turn = _open(turns)
    if turn.get("content") or "tool_calls" in turn or "reasoning_content" in turn:
        turn = {"role": "assistant", "content": ""}
        turns.append(turn)
    if thoughts:
        turn["reasoning_content"] = thoughts


_READERS: Mapping[str, Callable[[Mapping[str, Any], list[Turn], set[str]], None]] = {
    "message": _message,
    "function_call": _function_call,
    "function_call_output": _function_call_output,
    "reasoning": _reasoning,
}


def _open(turns: list[Turn]) -> Turn:
    """The assistant's turn that an item belongs to: the last one, or a new one."""
    if not turns or turns[-1]["role"] != "assistant":
        turns.append({"role": "assistant", "content": ""})
    return turns[-1]


def _demand_known(item: Mapping[str, Any], own: set[str]) -> None:
    for name, value in item.items():
        if value is not None and name not in own and name not in _OF_ALL:
            raise ValueError(f"{shown(name)}: no such field of {item.get('type', 'message')} is served here")


def _demand_text(item: Mapping[str, Any], name: str) -> str:
    value = item.get(name)
    if not isinstance(value, str) or not (value or name == "arguments"):
        raise ValueError(f"{name}: expected a text, found {shown(value)}")
    return value


def _text(content: Any, whose: str) -> str:
    """A content, whole or in parts."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise ValueError(f"expected a text, or a list of parts, in {whose}, found {shown(content)}")
    return "".join(_part(part, _TEXTS, whose) for part in content)


def _joined(parts: Any, kind: str) -> str:
    if parts is None:
        return ""
    if not isinstance(parts, list):
        raise ValueError(f"expected a list of parts of the type {kind}, found {shown(parts)}")
    return "".join(_part(part, (kind,), "reasoning") for part in parts)


def _part(part: Any, kinds: Sequence[str], whose: str) -> str:
    if not isinstance(part, dict):
        raise ValueError(f"a part of {whose}: expected an object, found {shown(part)}")
    if part.get("type") not in kinds:
        raise ValueError(f"a part of the type {shown(part.get('type'))} in {whose}; only text is read here")
    for name, value in part.items():
        if value is not None and name not in _OF_PARTS:
            raise ValueError(f"a part of {whose}: {shown(name)}: no such field is served here")
    return _demand_text(part, "text") if part.get("text") != "" else ""
