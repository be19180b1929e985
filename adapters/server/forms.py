"""How OpenAI's two paths for texts write what they answer."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lorary.adapters.engine import Completion
from lorary.adapters.server.calls import Call
from lorary.adapters.server.logprobs import of_chat, of_text
from lorary.adapters.server.writing import Part


@dataclass(frozen=True)
class Form:
    """How one of the two paths names what it answers."""

    prefix: str
    whole: str
    part: str
    chat: bool

    def choice(self, index: int, part: Part, completion: Completion) -> dict[str, Any]:
        """A whole text."""
        content = {"message": self._message(part)} if self.chat else {"text": part.said.text}
        reason = reason_of(completion, called=part.said.called)
        return {"index": index, **content, "logprobs": self._logprobs(part), "finish_reason": reason}

    def delta(self, index: int, part: Part, reason: str | None, *, first: bool, called: int) -> dict[str, Any]:
        """A piece of a text, the ``first`` or after others with so many calls."""
        content = {"delta": self._delta(part, first, called)} if self.chat else {"text": part.said.text}
        return {"index": index, **content, "logprobs": self._logprobs(part), "finish_reason": reason}

    def _message(self, part: Part) -> dict[str, Any]:
        said = part.said
        message: dict[str, Any] = {"role": "assistant", "content": (said.text or None) if said.calls else said.text}
        if said.thoughts:
            message["reasoning_content"] = said.thoughts
        if said.calls:
            message["tool_calls"] = [_call(call) for call in said.calls]
        return message

    def _delta(self, part: Part, first: bool, called: int) -> dict[str, Any]:
        said = part.said
        delta: dict[str, Any] = {"role": "assistant"} if first else {}
        if said.text or first:
            delta["content"] = said.text
        if said.thoughts:
            delta["reasoning_content"] = said.thoughts
        if said.calls:
            begun = itertools.accumulate((call.begins for call in said.calls), initial=called)
            places = [number - 1 for number in begun][1:]
            pieces = [_call(call) if call.begins else _more(call) for call in said.calls]
            delta["tool_calls"] = [{"index": place, **piece} for place, piece in zip(places, pieces, strict=True)]
        return delta

    def _logprobs(self, part: Part) -> dict[str, Any] | None:
        if part.tokens is None:
            return None
        return of_chat(part.tokens) if self.chat else of_text(part.tokens)


TEXT = Form("cmpl-", "text_completion", "text_completion", chat=False)
CHAT = Form("chatcmpl-", "chat.completion", "chat.completion.chunk", chat=True)


def reason_of(completion: Completion, *, called: bool) -> str:
    """Why a text ended, as callers are told; ``called``: it has calls of tools, all of them whole."""
    return "tool_calls" if called and completion.finish_reason == "stop" else completion.finish_reason


def usage(completions: Sequence[Completion], each: int) -> dict[str, int]:
    """Tokens of a call; a prompt that several texts go on from counts once."""
    asked = sum(completion.prompt_tokens for completion in completions[::each])
    made = sum(len(completion.tokens) for completion in completions)
    return {"prompt_tokens": asked, "completion_tokens": made, "total_tokens": asked + made}


def _call(call: Call) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _more(call: Call) -> dict[str, Any]:
    return {"function": {"arguments": call.arguments}}
