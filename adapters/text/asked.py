"""What a model is asked: a prompt, and what its chat template is told beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorary.adapters.text.tools import as_tools, tools_problem
from lorary.hub.errors import UsageError
from lorary.hub.template_kwargs import template_kwargs_problem


@dataclass(frozen=True)
class Asked:
    """A prompt (a text, or a list of messages), the tools that may be called in answer to it, and what else is told.

    ``kwargs`` are the template's variables by name, over those that the adapter was trained with.
    """

    prompt: Any
    tools: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


def apart(prompt: Any) -> Asked:
    """A prompt with or without anything beside it."""
    return prompt if isinstance(prompt, Asked) else Asked(prompt)


def ask(prompt: Any, tools: Any = None, kwargs: Any = None) -> Any:
    """A prompt with what its template is told; without any of that, the prompt alone.

    Args:
        tools: JSON schemas, as JSON text too, or functions.
        kwargs: variables by name.

    Raises:
        UsageError: they are none of these.
    """
    tools = as_tools(tools)
    if tools is not None and (problem := tools_problem(tools, functions=True)):
        raise UsageError(f"tools: {problem}")
    if kwargs is not None and (problem := template_kwargs_problem(kwargs)):
        raise UsageError(f"chat_template_kwargs: {problem}")
    return Asked(prompt, tuple(tools or ()), dict(kwargs or {})) if tools or kwargs else prompt


def ask_each(prompts: Sequence[Any], tools: Any, kwargs: Any) -> list[Any]:
    """Prompts with the tools of a call: one list for all of them, or a list (or None) for each.

    Raises:
        UsageError: they aren't as many as prompts, or as for :func:`ask`.
    """
    each = isinstance(tools, (list, tuple)) and any(own is None or isinstance(own, (list, tuple)) for own in tools)
    if each and len(tools) != len(prompts):
        raise UsageError(f"tools: {len(tools)} lists for {len(prompts)} prompts; expected one for each, or one for all")
    own = tools if each else [tools] * len(prompts)
    return [ask(prompt, tools, kwargs) for prompt, tools in zip(prompts, own, strict=True)]
