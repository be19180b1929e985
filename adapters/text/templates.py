"""Rendering chat templates, which come from strangers and are programs: within bounds of time and memory.

transformers renders them in Jinja's sandbox, so they reach neither files nor Python's own objects; but nothing there
ends a loop in a loop in a loop, or a text that doubles with each turn.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from types import FrameType
from typing import Any

import psutil

from lorary.adapters.arguments import shown
from lorary.adapters.text.tools import as_table, as_text, with_calls
from lorary.hub.errors import LoraryError, UnsupportedAdapterError, UsageError

PATIENCE = 5.0
"""Seconds for one conversation; the longest templates take a few milliseconds."""

MEMORY = 1_000_000_000
"""Bytes that the process may grow by meanwhile."""

_WORD = re.compile(r"[^\W\d]\w*")
_FILE = "<template>"  # what Jinja calls the code that it compiles a text to
_BETWEEN = 0.002  # seconds between two looks at the memory: to fill much of it takes longer


def render_chat(
    tokenizer: Any,
    messages: list[Any],
    template: str | None,
    tools: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> str:
    """The text before the model for a conversation that waits for an answer.

    Args:
        template: None is the tokenizer's own; of several, the one that it has for tools where there are some.
        tools: what the model may call; a template that knows of none leaves them out.
        kwargs: what else the template is told, by name.

    Raises:
        UsageError: the template refuses the conversation, or isn't one.
        UnsupportedAdapterError: it takes too long, or too much memory.
    """
    try:
        with _bounded():
            text = chat_text(tokenizer, messages, template, tools, kwargs, add_generation_prompt=True)
    except LoraryError:
        raise
    except Exception as error:  # a template is a program: it may fail in any way
        raise UsageError(f"the chat template fails on this conversation: {error or type(error).__name__}") from error
    return text


def chat_text(
    tokenizer: Any,
    messages: Sequence[Any],
    template: str | None,
    tools: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    *,
    add_generation_prompt: bool,
) -> str:
    """A conversation through a template, with its calls' arguments as the template takes them: tables, mostly.

    No tools are none, rather than an empty list, to which some templates (Llama 3's) say that there are some.
    """

    def render(read: Callable[[Any], Any]) -> str:
        return str(
            tokenizer.apply_chat_template(
                with_calls(messages, read),
                tools=list(tools) or None,
                chat_template=template,
                add_generation_prompt=add_generation_prompt,
                tokenize=False,
                **(kwargs or {}),
            )
        )

    try:
        return render(as_table)
    except TypeError:  # some templates join arguments to a text rather than write them as one
        return render(as_text)


def unknown_variables(tokenizer: Any, template: str | None, names: Collection[str]) -> dict[str, str]:
    """Those of these variables that the chat template doesn't speak of, with a line on each."""
    return dict(_unknown(tokenizer, template, names))


def demand_variables(tokenizer: Any, template: str | None, names: Collection[str]) -> None:
    """Does the chat template speak of these variables?

    Raises:
        UsageError: it doesn't, so nothing would come of telling it.
    """
    for _, problem in _unknown(tokenizer, template, names):
        raise UsageError(f"chat_template_kwargs: {problem}")


def _unknown(tokenizer: Any, template: str | None, names: Collection[str]) -> Iterator[tuple[str, str]]:
    own = template or tokenizer.chat_template
    known = set(_WORD.findall(own if isinstance(own, str) else " ".join((own or {}).values())))
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=3)
            hint = f"; near it: {', '.join(near)}" if near else ""
            yield name, f"the chat template knows no {shown(name)}{hint}"


@contextmanager
def _bounded() -> Iterator[None]:
    """Looks at the clock at each line of a template's code that runs in this thread.

    A single operation that takes much by itself is over before the next look. Under a debugger, which looks in the same
    way, there are no bounds.
    """
    if sys.gettrace() is not None:
        yield
        return
    sys.settrace(_Watch().enter)
    try:
        yield
    finally:
        sys.settrace(None)


class _Watch:
    """The trace function: https://docs.python.org/3/library/sys.html#sys.settrace."""

    def __init__(self) -> None:
        self._process = psutil.Process()
        self._deadline = time.monotonic() + PATIENCE
        self._most = self._process.memory_info().rss + MEMORY
        self._looked = time.monotonic()

    def enter(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any] | None:
        """Called with each function; only a template's own are looked into."""
        if frame.f_code.co_filename != _FILE:
            return None
        self._look()
        return self.line

    def line(self, frame: FrameType, event: str, _: Any) -> Callable[..., Any]:
        """Called with each line of a template's code."""
        self._look()
        return self.line

    def _look(self) -> None:
        now = time.monotonic()
        if now > self._deadline:
            raise UnsupportedAdapterError(f"the chat template takes more than {PATIENCE:g} s for one conversation")
        if now - self._looked < _BETWEEN:
            return
        self._looked = now
        if self._process.memory_info().rss > self._most:
            raise UnsupportedAdapterError(f"the chat template takes more than {MEMORY:,} bytes for one conversation")
