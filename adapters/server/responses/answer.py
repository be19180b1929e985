"""A response as it is written: items one after another, and the event that tells of each step."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

from lorary.adapters.engine import Completion
from lorary.adapters.server.calls import Call
from lorary.adapters.server.logprobs import ToldToken, of_chat
from lorary.adapters.server.responses.body import ResponseBody
from lorary.adapters.server.writing import Part

Event = dict[str, Any]
_TEXT, _THOUGHTS, _CALL = "message", "reasoning", "function_call"
_PREFIXES = {_TEXT: "msg", _THOUGHTS: "rs", _CALL: "fc"}
_PIECES = {
    _TEXT: "response.output_text", _THOUGHTS: "response.reasoning_text", _CALL: "response.function_call_arguments",
}  # fmt: skip
"""What events of a piece of each kind of item begin with."""


class Answer:
    """Makes items, and events of them, of what a chat writes.

    Around thoughts and calls there are no empty lines, as in a whole chat.
    """

    def __init__(self, body: ResponseBody) -> None:
        self._body = body
        self._about = _about(body)
        self._items: list[dict[str, Any]] = []  # those that are done
        self._item: dict[str, Any] | None = None  # the one that is being written
        self._pieces: list[str] = []  # its text
        self._told: list[dict[str, Any]] = []  # of its tokens
        self._spaces = ""  # which may stand before what ends an item, and are none of it then
        self._tokens: list[ToldToken] = []  # of what is still to be told
        self._numbers = 0
        self._status = "in_progress"
        self._error: dict[str, Any] | None = None
        self._usage: dict[str, Any] | None = None

    def begin(self) -> list[Event]:
        """What comes before everything."""
        return [self._event(f"response.{name}", response=self.response()) for name in ("created", "in_progress")]

    def add(self, part: Part) -> list[Event]:
        """What a piece of the answer comes to."""
        said = part.said
        self._tokens += part.tokens or ()
        events = self._go_on(_THOUGHTS, said.thoughts) if said.thoughts else []
        events += self._go_on(_TEXT, said.text) if said.text else []
        for call in said.calls:
            events += [*self._close(), *self._open(_call(call))] if call.begins else []
            events += self._piece(call.arguments) if call.arguments else []
            events += self._close() if call.ends else []
        return events

    def end(self, completion: Completion, thinking: int) -> list[Event]:
        """The end of it, for which so many tokens were thought."""
        cut = completion.finish_reason == "length"
        status = "incomplete" if cut else "completed"
        events: list[Event] = []
        if not self._items and (self._item is None or self._item["type"] == _TEXT):
            spaces, self._spaces = self._spaces, ""  # of an answer that is all text nothing is left out
            events += self._open({"type": _TEXT}) if self._item is None else []
            events += self._piece(spaces) if spaces else []
        events += self._close("incomplete" if self._item and self._item["type"] == _CALL else status)
        if all(item["type"] == _THOUGHTS for item in self._items):
            events += [*self._open({"type": _TEXT}), *self._close(status)]
        self._status, self._usage = status, _usage(completion, thinking)
        return [*events, self._event(f"response.{status}", response=self.response())]

    def fail(self, message: str) -> list[Event]:
        """The end of what has gone wrong."""
        events = self._close("incomplete")
        self._status, self._error = "failed", {"code": "server_error", "message": message}
        return [*events, self._event("response.failed", response=self.response())]

    def response(self) -> dict[str, Any]:
        """All of it as it stands."""
        cut = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        return self._about | {
            "status": self._status, "error": self._error, "incomplete_details": cut, "output": [*self._items],
            "usage": self._usage,
        }  # fmt: skip

    def _go_on(self, kind: str, text: str) -> list[Event]:
        """Go on with a text or with thoughts, or begin with them once there is a word of them."""
        events: list[Event] = []
        if self._item is not None and self._item["type"] != kind:
            if not text.strip():
                return []
            events += self._close()
        text = self._spaces + text
        stripped = text.rstrip()
        self._spaces = text[len(stripped) :]
        if not stripped:
            return events
        if self._item is None:
            stripped = stripped.lstrip() if self._items or kind == _THOUGHTS else stripped
            events += self._open({"type": kind})
        return events + self._piece(stripped)

    def _open(self, item: dict[str, Any]) -> list[Event]:
        kind = item["type"]
        self._item = {"id": f"{_PREFIXES[kind]}_{uuid.uuid4().hex}", "status": "in_progress", **item}
        self._item |= _beginning(kind)
        events = [self._event("response.output_item.added", output_index=len(self._items), item={**self._item})]
        if kind != _CALL:
            events.append(self._event("response.content_part.added", **self._place(), part=self._part()))
        return events

    def _piece(self, text: str) -> list[Event]:
        assert self._item is not None
        kind = self._item["type"]
        told = self._take()
        self._pieces.append(text)
        more = {"logprobs": told} if kind == _TEXT else {}
        return [self._event(f"{_PIECES[kind]}.delta", **self._place(), delta=text, **more)]

    def _close(self, status: str = "completed") -> list[Event]:
        """End the item that is being written, if there is one."""
        if self._item is None:
            return []
        self._take()
        item, kind, text = self._item, self._item["type"], "".join(self._pieces)
        part, place = self._part(), self._place()
        if kind == _CALL:
            item["arguments"] = text
            events = [self._event(f"{_PIECES[kind]}.done", **place, name=item["name"], arguments=text)]
        else:
            item["content"] = [part]
            more = {"logprobs": part["logprobs"]} if kind == _TEXT else {}
            events = [
                self._event(f"{_PIECES[kind]}.done", **place, text=text, **more),
                self._event("response.content_part.done", **place, part=part),
            ]
        item["status"] = status
        events.append(self._event("response.output_item.done", output_index=len(self._items), item=item))
        self._items.append(item)
        self._item, self._pieces, self._told, self._spaces = None, [], [], ""
        return events

    def _part(self) -> dict[str, Any]:
        """The content of the item that is being written."""
        assert self._item is not None
        text = "".join(self._pieces)
        if self._item["type"] == _TEXT:
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": [*self._told]}
        return {"type": "reasoning_text", "text": text}

    def _place(self) -> dict[str, Any]:
        assert self._item is not None
        place = {"item_id": self._item["id"], "output_index": len(self._items)}
        return place if self._item["type"] == _CALL else place | {"content_index": 0}

    def _take(self) -> list[dict[str, Any]]:
        """What there is to tell of tokens up to here; of thoughts' and calls' nothing is told."""
        tokens, self._tokens = self._tokens, []
        if self._item is None or self._item["type"] != _TEXT:
            return []
        told = _probabilities(tokens)
        self._told += told
        return told

    def _event(self, kind: str, **fields: Any) -> Event:
        self._numbers += 1
        return {"type": kind, "sequence_number": self._numbers - 1, **fields}


def _beginning(kind: str) -> dict[str, Any]:
    if kind == _TEXT:
        return {"role": "assistant", "content": []}
    return {"summary": [], "content": [], "encrypted_content": None} if kind == _THOUGHTS else {}


def _call(call: Call) -> dict[str, Any]:
    return {"type": _CALL, "call_id": call.id, "name": call.name, "arguments": ""}


def _probabilities(tokens: Sequence[ToldToken]) -> list[dict[str, Any]]:
    """As of chats, but for bytes, of which this form always has a list."""
    entries: list[dict[str, Any]] = of_chat(tokens)["content"]
    for entry in (one for whole in entries for one in (whole, *whole["top_logprobs"])):
        entry["bytes"] = entry["bytes"] or []
    return entries


def _usage(completion: Completion, thinking: int) -> dict[str, Any]:
    asked, made = completion.prompt_tokens, len(completion.tokens)
    return {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": made,
        "output_tokens_details": {"reasoning_tokens": min(thinking, made)},
        "total_tokens": asked + made,
    }


def _about(body: ResponseBody) -> dict[str, Any]:
    """What a response says of its request."""
    choice = body.tool_choice or "auto"
    text = body.text.format if body.text else None
    return {
        "id": f"resp_{uuid.uuid4().hex}",
        "object": "response",
        "created_at": int(time.time()),
        "model": body.model,
        "background": False,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": False,
        "temperature": body.temperature,
        "text": {"format": text.shown() if text else {"type": "text"}},
        "tool_choice": choice if isinstance(choice, str) else {"type": "function", **choice["function"]},
        "tools": [tool.model_dump() for tool in body.tools or ()],
        "top_logprobs": body.top_logprobs or 0,
        "top_p": body.top_p,
        "truncation": "disabled",
    }
