"""What a model is asked: a prompt, and what its chat template is told beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lorary.adapters.text.tools import from_json_text, tools_problem
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


def ask(prompt: Any, tools: Any = None, *kwargs: Any) -> Any:
    """A prompt with what its template is told; without any of that, the prompt alone.

    Args:
        tools: JSON schemas, as JSON text too, or functions.
        kwargs: tables of variables by name, as JSON text too; what a later one says wins.

    Raises:
        UsageError: they are none of these.
    """
    tools = from_json_text(tools)
    if tools is not None and (problem := tools_problem(tools, functions=True)):
        raise UsageError(f"tools: {problem}")
    told: dict[str, Any] = {}
    for own in map(from_json_text, kwargs):
        if own is not None and (problem := template_kwargs_problem(own)):
            raise UsageError(f"chat_template_kwargs: {problem}")
        told |= own or {}
    return Asked(prompt, tuple(tools or ()), told) if tools or told else prompt


def ask_each(prompts: Sequence[Any], tools: Any, kwargs: Any) -> list[Any]:
    """Prompts with what a call tells: one list of tools and one table for all of them, or one (or None) for each.

    Raises:
        UsageError: they aren't as many as prompts, or as for :func:`ask`.
    """
    of_each = isinstance(tools, (list, tuple)) and any(own is None or isinstance(own, (list, tuple)) for own in tools)
    tools = _one_each("tools", tools, len(prompts)) if of_each else [tools] * len(prompts)
    of_each = isinstance(kwargs, (list, tuple))
    kwargs = _one_each("chat_template_kwargs", kwargs, len(prompts)) if of_each else [kwargs] * len(prompts)
    return [ask(*asked) for asked in zip(prompts, tools, kwargs, strict=True)]


def _one_each(name: str, values: Sequence[Any], prompts: int) -> Sequence[Any]:
    if len(values) != prompts:
        raise UsageError(f"{name}: {len(values)} for {prompts} prompts; expected one for each, or one for all")
    return values
