"""Calls that an answer has to be, read as they are written: each begins once its function is known."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from lorary.adapters.server.calls import Call, Said, new_call
from lorary.adapters.server.tool_choice import WantedCalls

_STRING = r'"(?:[^"\\]|\\.)*"'
_HEAD = re.compile(rf'\s*(?:\[|\}}\s*,)\s*\{{\s*"name"\s*:\s*({_STRING})\s*,\s*"arguments"\s*:')
"""What stands before a call's arguments in a list: the end of the call before, and names in the schema's order."""


class WantedReader:
    """Makes calls of the answer that was written by a schema of them.

    Arguments are handed on as they stand there. What is cut off leaves a call that doesn't end, or is text where it
    doesn't come to a call.
    """

    special = False

    def __init__(self, wanted: WantedCalls) -> None:
        self._named = wanted.name
        self._held = ""
        self._begun = 0
        self._call: Call | None = None  # the one that is being written
        self._value = _Value()

    def read(self, text: str, *, last: bool = False) -> Said:
        """What the next piece of the text comes to."""
        self._held += text
        calls: list[Call] = []
        while self._call is not None or self._begins():
            assert self._call is not None
            piece = self._piece(last=last)
            if piece.begins or piece.ends or piece.arguments:
                calls.append(piece)
            if not piece.ends:
                break
        if last and not self._begun:
            return Said(self._held)
        return Said(calls=tuple(calls))

    def _begins(self) -> bool:
        """Is it known by now which function is called next?"""
        if self._named is None:
            head = _HEAD.match(self._held)
            if head is None:
                return False
            name, self._held = json.loads(head[1]), self._held[head.end() :]
        elif self._begun or not self._held:
            return False
        else:
            name = self._named
        self._call, self._value = new_call(name, ""), _Value()
        self._begun += 1
        return True

    def _piece(self, *, last: bool) -> Call:
        """What there is of the call's arguments, beyond what was handed on."""
        assert self._call is not None
        call = self._call
        if not self._value.begun:
            self._held = self._held.lstrip()
        end = self._value.end(self._held)
        if end is None and last and self._named is not None and self._value.may_end:  # in a list more has to follow
            end = len(self._held)
        arguments, self._held = (self._held, "") if end is None else (self._held[:end], self._held[end:])
        self._call = None if end is not None else replace(call, begins=False)
        return replace(call, arguments=arguments, ends=end is not None)


class _Value:
    """Finds the end of a JSON value that comes in pieces and is valid as far as it goes."""

    def __init__(self) -> None:
        self.begun = False
        self._depth = 0
        self._quoted = self._escaped = False
        self._bare = ""  # what there is of it, up to a quotation mark or a bracket

    @property
    def may_end(self) -> bool:
        """Is it, so far, a whole number or word, which only what follows ends?"""
        if self._depth or self._quoted:
            return False
        try:
            json.loads(self._bare, parse_int=str)
        except ValueError:
            return False
        return True

    def end(self, text: str) -> int | None:
        """Where in the next piece the value ends; None where it goes on."""
        self._bare += "" if self._depth or self._quoted else text
        for place, sign in enumerate(text):
            self.begun = True
            if self._quoted:
                self._quoted = self._escaped or sign != '"'
                self._escaped = sign == "\\" and not self._escaped
                closed = not self._quoted
            elif self._depth == 0 and sign in ",}] \n":  # after a number, or a word
                return place
            else:
                self._quoted = sign == '"'
                self._depth += (sign in "{[") - (sign in "}]")
                closed = sign in "}]"
            if closed and self._depth == 0:
                return place + 1
        return None
