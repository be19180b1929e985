"""Calls of tools in what a model writes, read as the base's tokenizer says: by its ``response_template``.

Such templates and their reading are transformers' own (``get_response_parser``).
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

from lorary.adapters.engine import Request as Generation
from lorary.adapters.engine.text import text_of

_LOGGER = logging.getLogger(__name__)
_CALLS = "tool_calls"
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")  # what templates call it


@dataclass(frozen=True)
class Call:
    """A function's name and its arguments as JSON text, under an id that the tool's answer refers to.

    Or a piece of it, with what comes next of the arguments: ``begins`` is the first, ``ends`` the last.
    """

    id: str
    name: str
    arguments: str
    begins: bool = True
    ends: bool = True


@dataclass(frozen=True)
class Said:
    """What a piece of an answer comes to: text, thoughts before it, and calls, or a piece of each."""

    text: str = ""
    thoughts: str = ""
    calls: tuple[Call, ...] = ()

    @property
    def called(self) -> bool:
        """Does it end with a whole call?"""
        return bool(self.calls) and self.calls[-1].ends


def new_call(name: str, arguments: Any) -> Call:
    """A call under an id of its own; ``arguments`` are JSON text, or what is to be written as such."""
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return Call(f"call_{uuid.uuid4().hex[:24]}", name, text)


def joined(pieces: Iterable[Call]) -> tuple[Call, ...]:
    """Calls of their pieces, each as far as it has come."""
    texts: dict[str, list[str]] = {}
    found: dict[str, Call] = {}
    for piece in pieces:
        texts.setdefault(piece.id, []).append(piece.arguments)
        found[piece.id] = piece
    return tuple(Call(one.id, one.name, "".join(texts[one.id]), ends=one.ends) for one in found.values())


def response_template(tokenizer: Any) -> dict[str, Any] | None:
    """How answers are to be read, by what the base's tokenizer says; None where it says nothing, or nothing readable.

    Adapters' tokenizers aren't asked: such templates have regular expressions, which a stranger's may never finish.
    """
    template: dict[str, Any] | None = getattr(tokenizer, "response_template", None)
    if template is None:
        return None
    try:
        tokenizer.get_response_parser(template, prefix="")
    except Exception as error:
        _LOGGER.warning("calls of tools come as text: the response_template of the base's tokenizer: %s", error)
        return None
    return template


class Reader(Protocol):
    """Takes an answer apart as it comes."""

    @property
    def special(self) -> bool:
        """Does the text that it reads have special tokens in it?"""

    def read(self, text: str, *, last: bool = False) -> Said:
        """What the next piece of the text comes to; with the last one all that is left."""


class AnswerReader:
    """Takes an answer apart as it comes. A call that can't be read stays text, and all that follows it.

    Args:
        generation: whose answer it is.
        template: of :func:`response_template`.
        tools: what may be called, by which arguments get their types.
    """

    special = True

    def __init__(self, generation: Generation, template: dict[str, Any], tools: Sequence[Any]) -> None:
        tokenizer = generation.tokenizer
        prompt = text_of(generation.prompt, tokenizer, special=True)
        self._special = sorted(tokenizer.all_special_tokens, key=len, reverse=True)
        self._held = ""  # what was written and isn't handed on: the call that is open, or what may begin one
        self._read = 0  # how much of this the parser has told of
        self._parser: Any = None  # once it has failed: all that comes is text
        with suppress(Exception):  # whatever a template does to a text that isn't as it should be
            self._parser = tokenizer.get_response_parser(template, prefix=prompt, tools=list(tools))

    def read(self, text: str, *, last: bool = False) -> Said:
        """What the next piece of the text, special tokens included, comes to; with the last one all that is left."""
        self._held += text
        if self._parser is not None:
            try:
                events = self._parser.feed(text)
                if last:
                    events += self._parser.finalize()[1]
                return self._said(events)
            except Exception:
                self._parser = None
        text, self._held = self._held, ""
        return Said(self._plain(text))

    def _said(self, events: Sequence[Any]) -> Said:
        texts, thoughts, calls = list[str](), list[str](), list[Call]()
        done, closed = 0, False  # what of the text is handed on, as far as the parser tells
        for event in events:
            kind, field = event["type"], event["field"]
            closed = kind == "region_close"
            if kind == "region_chunk":
                self._read = self._held.find(event["text"], self._read) + len(event["text"])
            if field != _CALLS:
                done = self._read
            elif closed:
                calls += _calls(event["value"])
                done = self._read
            if kind == "region_chunk" and field != _CALLS:
                (thoughts if field in _THOUGHTS else texts).append(event["text"])
        done = len(self._held) if closed else done  # of what closes a part nothing is told
        self._held, self._read = self._held[done:], max(self._read - done, 0)
        return Said(self._plain("".join(texts)), self._plain("".join(thoughts)), tuple(calls))

    def _plain(self, text: str) -> str:
        """Without special tokens, as answers are that nobody takes apart."""
        for token in self._special:
            text = text.replace(token, "")
        return text


def _calls(value: Any) -> list[Call]:
    """The calls of a region; raises what there is to raise where they aren't as OpenAI's."""
    found = []
    for one in value if isinstance(value, list) else [value]:
        function = one["function"]
        name, arguments = function["name"], function["arguments"]
        if not isinstance(name, str):
            raise TypeError(f"a function's name: expected a text, found {type(name).__name__}")
        found.append(new_call(name, arguments))
    return found
